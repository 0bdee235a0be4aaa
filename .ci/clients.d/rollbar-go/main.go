// Reports errors and messages with rollbar-go until its standard input ends: rollbar-go ENDPOINT TOKEN. It prints the
// UUID of each report that was answered with 200, the only status that the SDK takes for success.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/rollbar/rollbar-go"
)

type transport struct{}

func (transport) RoundTrip(req *http.Request) (*http.Response, error) {
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	var answer struct{ Result struct{ UUID string } }
	if err == nil && res.StatusCode == http.StatusOK {
		if err = json.Unmarshal(text, &answer); err == nil {
			fmt.Println(answer.Result.UUID)
		}
	}
	res.Body = io.NopCloser(bytes.NewReader(text))
	return res, err
}

func main() {
	rollbar.SetEndpoint(os.Args[1])
	rollbar.SetToken(os.Args[2])
	rollbar.SetEnvironment("rollbar-go")
	rollbar.SetHTTPClient(&http.Client{Transport: transport{}})
	rollbar.SetLogger(&rollbar.SilentClientLogger{})
	ended := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(ended)
	}()
	for n := 0; ; n++ {
		rollbar.Error(fmt.Errorf("checkout %d: %w", n, errors.New("the price is undefined")))
		rollbar.Info(fmt.Sprintf("checkout %d is closed", n))
		select {
		case <-ended:
			rollbar.Wait()
			return
		case <-time.After(200 * time.Millisecond):
		}
	}
}
