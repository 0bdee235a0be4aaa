// remote.go sends the command line's operations to the server at APP_URL, instead of running them
// here. It is handlers.go seen from the other side.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"app/internal/datadog"
	"app/internal/rawjson"
)

// newRequest makes the request that runs the command with the arguments on the server at the base
// URL.
func newRequest(ctx context.Context, base string, c *Command, args arguments) (*http.Request, error) {
	method, path, _ := strings.Cut(c.Route, " ")
	query := url.Values{}
	body := json.RawMessage(`{}`)
	for _, p := range c.Run.params {
		for _, value := range args.values[p.name] {
			switch p.in {
			case inPath:
				path = strings.Replace(path, "{"+p.name+"}", url.PathEscape(value.text), 1)
			case inQuery:
				query.Add(p.name, value.text)
			case inBody:
				body = rawjson.Set(body, p.name, p.json(value))
			}
		}
	}
	target := strings.TrimRight(base, "/") + path
	if len(query) > 0 {
		target += "?" + query.Encode()
	}
	var content io.Reader
	if len(c.names(inBody)) > 0 {
		content = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, target, content)
	if err == nil && content != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	return req, err
}

// json is a checked literal as the JSON that it stands for.
func (p *param) json(value literal) json.RawMessage {
	if value.json || p.kind != kindText || p.nullable && value.text == "null" {
		return json.RawMessage(value.text)
	}
	return rawjson.AppendQuoted(nil, value.text)
}

// A remoteAnswer is a result as a server sent it.
type remoteAnswer struct {
	json.RawMessage
	status int
}

func (a remoteAnswer) outcome() outcome {
	if a.status == outage.status {
		return outage
	}
	return outcome{a.status, 0}
}

// askServer runs the command on the server at APP_URL.
func askServer(ctx context.Context, config *Config, c *Command, args arguments) (any, error) {
	req, err := newRequest(ctx, config.AppURL, c, args)
	if err != nil {
		return nil, err
	}
	if tokens := config.apiTokens; len(tokens) > 0 {
		req.Header.Set("Authorization", "Bearer "+tokens[0])
	}
	datadog.SpanFrom(ctx).Inject(req.Header)
	if callOf(ctx).stream {
		req.Header.Set("Accept", ndjson)
	}
	res, err := remoteClient.Do(req)
	if err != nil {
		return nil, noServer(config, err)
	}
	kind, _, _ := strings.Cut(res.Header.Get("Content-Type"), ";")
	if kind == ndjson && res.StatusCode == http.StatusOK {
		noteUnstored(ctx, res)
		return remoteLines(config, res), nil
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, noServer(config, err)
	}
	noteUnstored(ctx, res)
	answer, err := rawjson.Compact(text)
	isKO := c == checkCmd && res.StatusCode == outage.status && string(answer) == `{"status":"KO"}`
	switch {
	case kind == "application/problem+json":
		return nil, remoteFailure(config, res, text)
	case res.StatusCode/100 == 3:
		return nil, fail(misconfigured, "the server at APP_URL, %s, leads elsewhere: set APP_URL to where the service is, %s", appURL(config), res.Header.Get("Location"))
	case res.StatusCode/100 != 2 && !isKO:
		return nil, strangeServer(config, res)
	case c == whichCmd && kind == "text/plain":
		return Text(strings.TrimSuffix(string(text), "\n")), nil
	case c == whichCmd, err != nil, answer[0] != '{':
		return nil, strangeServer(config, res)
	case c.Columns == "":
		return remoteAnswer{answer, res.StatusCode}, nil
	}
	list := remoteList(res, answer)
	if list.Rows == nil {
		return nil, strangeServer(config, res)
	}
	return list, nil
}

// remoteClient follows no redirects: they make a read of what should change something.
var remoteClient = &http.Client{
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// appURL is APP_URL without a password.
func appURL(config *Config) string {
	u, err := url.Parse(config.AppURL)
	if err != nil {
		return "which is no URL"
	}
	return u.Redacted()
}

// strangeServer is the failure of an answer that this service does not give.
func strangeServer(config *Config, res *http.Response) error {
	return fail(badGateway, "the server at APP_URL, %s, answered %d, but not as this service does: is it that, and is what is before it well?", appURL(config), res.StatusCode)
}

func noteUnstored(ctx context.Context, res *http.Response) {
	if res.Header.Get("Report-Stored") == "false" {
		callOf(ctx).notStored("PostgreSQL does not answer the server")
	}
}

// remoteLines is the list of which a server sends one element a line, read as it comes.
func remoteLines(config *Config, res *http.Response) *List {
	return &List{
		Rows: func(yield func(json.RawMessage, error) bool) {
			defer res.Body.Close()
			for lines := bufio.NewReaderSize(res.Body, 64<<10); ; {
				line, err := lines.ReadBytes('\n')
				switch {
				case err == io.EOF && len(line) == 0:
					return
				case err != nil:
					yield(nil, noServer(config, err))
					return
				case bytes.HasPrefix(line, []byte(`{"error":`)):
					yield(nil, remoteFailure(config, res, rawjson.Get(line, "error")))
					return
				}
				if !yield(line[:len(line)-1], nil) {
					return
				}
			}
		},
	}
}

func noServer(config *Config, err error) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	var inside *url.Error // says the whole URL again
	if errors.As(err, &inside) {
		err = inside.Err
	}
	return fail(unavailable, "the server at APP_URL, %s, does not answer: %w", appURL(config), err)
}

// remoteFailure turns problem details back into the failure that they came from.
func remoteFailure(config *Config, res *http.Response, text []byte) error {
	var p problem
	err := json.Unmarshal(text, &p)
	kind, known := kindOf(p.Type, p.Status)
	if err != nil || !known {
		return strangeServer(config, res)
	}
	f := &Failure{kind: kind, detail: p.Detail, fields: p.Errors, upstream: p.UpstreamStatus}
	if seconds, err := strconv.Atoi(res.Header.Get("Retry-After")); err == nil {
		f.wait = time.Duration(seconds) * time.Second
	}
	return f
}

// remoteList is the list that a JSON document was written from: the first array in it, if there is one.
func remoteList(res *http.Response, document json.RawMessage) *List {
	list := &List{Rest: document}
	for name, value := range rawjson.Members(document) {
		if value[0] != '[' {
			continue
		}
		list.Name = name
		list.Rest = rawjson.Set(document, name, nil)
		list.Rows = func(yield func(json.RawMessage, error) bool) {
			for row := range rawjson.Elements(value) {
				if !yield(row, nil) {
					return
				}
			}
		}
		break
	}
	for _, link := range res.Header.Values("Link") {
		target, isNext := strings.CutSuffix(link, `>; rel="next"`)
		if next, err := url.Parse(strings.TrimPrefix(target, "<")); isNext && err == nil {
			for _, name := range []string{"page", "cursor"} {
				if next.Query().Has(name) {
					list.Next = url.Values{name: {next.Query().Get(name)}}
				}
			}
		}
	}
	return list
}

// askServerForAll is askServer for -all: it follows the pages until an empty one. Elements with an
// id that an earlier page had are left out.
func askServerForAll(ctx context.Context, config *Config, c *Command, args arguments) (any, error) {
	callOf(ctx).stream = false // the pages say more than their elements
	first, err := askServer(ctx, config, c, args)
	if err != nil {
		return nil, err
	}
	all := *first.(*List)
	number, _ := rawjson.Int(rawjson.Get(all.Rest, "page"))
	all.Next = nil
	all.Rows = func(yield func(json.RawMessage, error) bool) {
		seen := map[string]bool{}
		for page := first.(*List); ; {
			rows := 0
			for row := range page.Rows {
				rows++
				id := string(rawjson.Get(row, "id"))
				if !seen[id] && !yield(row, nil) {
					return
				}
				seen[id] = true
			}
			if rows == 0 {
				return
			}
			callOf(ctx).report("%d items, %d pages", len(seen), number)
			number++
			args.values["page"] = []literal{{text: strconv.FormatInt(number, 10)}}
			next, err := askServer(ctx, config, c, args)
			if err != nil {
				yield(nil, err)
				return
			}
			page = next.(*List)
		}
	}
	return &all, nil
}

// asCurl is the request that runs the command on the server at APP_URL, or else at ADDR, as a line for
// a shell. The token stays in the environment.
func asCurl(ctx context.Context, config *Config, c *Command, args arguments, lines bool) (string, error) {
	for _, name := range c.names(inFlag) {
		if len(args.values[name]) > 0 {
			return "", fail(invalid, "-%s is for the command line: there is no request like that", name)
		}
	}
	base := appURL(config)
	if config.AppURL == "" {
		base = "http://" + localAddress(config.Addr)
	}
	req, err := newRequest(ctx, base, c, args)
	if err != nil {
		return "", err
	}
	words := []string{"curl"}
	if isPostOfBody := req.Method == http.MethodPost && req.Body != nil; req.Method != http.MethodGet && !isPostOfBody {
		words = append(words, "-X", req.Method)
	}
	switch n := len(config.apiTokens); {
	case c.Open || n == 0:
	case n == 1:
		words = append(words, "-H", `"Authorization: Bearer $API_TOKEN"`)
	default: // any is valid
		words = append(words, "-H", `"Authorization: Bearer ${API_TOKEN%%,*}"`)
	}
	if lines {
		words = append(words, "-H", shellQuote("Accept: "+ndjson))
	}
	if req.Body != nil {
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return "", err
		}
		words = append(words, "-H", shellQuote("Content-Type: application/json"), "-d", shellQuote(string(body)))
	}
	return strings.Join(append(words, shellQuote(req.URL.String())), " "), nil
}

// localAddress is where a client on this machine finds what listens at the address.
func localAddress(address string) string {
	host, port, err := net.SplitHostPort(address)
	if ip := net.ParseIP(host); err == nil && (host == "" || ip != nil && ip.IsUnspecified()) {
		return net.JoinHostPort("localhost", port)
	}
	return address
}

// shellQuote quotes a word for a shell.
func shellQuote(word string) string {
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}
