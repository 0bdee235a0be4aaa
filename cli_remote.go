package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	"app/internal/async"
	"app/internal/datadog"
	"app/internal/rawjson"
)

// newRequest returns the request that runs the command on the server at the base URL.
func newRequest(ctx context.Context, base string, c *Command, args arguments) (*http.Request, error) {
	method, path, _ := strings.Cut(c.Route, " ")
	query := url.Values{}
	var body json.RawMessage
	if len(c.names(inBody)) > 0 {
		body = json.RawMessage(`{}`)
	}
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
	req, err := http.NewRequestWithContext(ctx, method, target, bytes.NewReader(body))
	if err == nil && body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	return req, err
}

// json returns a checked literal as JSON.
func (p *param) json(value literal) json.RawMessage {
	if value.json || p.kind != kindText || p.nullable && value.text == "null" {
		return json.RawMessage(value.text)
	}
	return rawjson.AppendQuoted(nil, value.text)
}

// runRemotely runs the command on the server at APP_URL. With -all it requests page after page.
func runRemotely(ctx context.Context, config *Config, c *Command, args arguments) (any, error) {
	all := args.values["all"]
	if len(all) == 0 || all[0].text != "true" {
		return askServer(ctx, config, c, args)
	}
	callOf(ctx).stream = false // asks for whole documents, since lines hold only the items
	first, err := askServer(ctx, config, c, args)
	if err != nil {
		return nil, err
	}
	list := first.(*List)
	number, _ := rawjson.Int(rawjson.Get(list.Rest, "page"))
	followPages(ctx, list, number, func(number int64) (*List, error) {
		args.values["page"] = []literal{{text: strconv.FormatInt(number, 10)}}
		value, err := askServer(ctx, config, c, args)
		page, _ := value.(*List)
		return page, err
	})
	return list, nil
}

// remoteClient follows no redirects, since they would turn a change into a read.
var remoteClient = &http.Client{CheckRedirect: refuseRedirects}

// askServer sends one request to the server at APP_URL and returns the result in its response.
func askServer(ctx context.Context, config *Config, c *Command, args arguments) (any, error) {
	req, err := newRequest(ctx, config.AppURL, c, args)
	if err != nil {
		return nil, err
	}
	if tokens, _ := config.ownTokens(); len(tokens) > 0 {
		req.Header.Set("Authorization", "Bearer "+tokens[0])
	}
	if callOf(ctx).stream {
		req.Header.Set("Accept", ndjson)
	}
	datadog.SpanFrom(ctx).Inject(req.Header)
	defer showWaiting(ctx)()
	res, err := remoteClient.Do(req)
	if err != nil {
		return nil, noResponse(config, err)
	}
	if res.Header.Get("Report-Stored") == "false" {
		callOf(ctx).notStored("the server's PostgreSQL does not answer")
	}
	if age, err := strconv.ParseInt(res.Header.Get("Age"), 10, 32); err == nil && res.Header.Get("Report-Source") == "archive" {
		callOf(ctx).fromArchive(time.Now().Add(-time.Duration(age) * time.Second))
	}
	if callOf(ctx).stream && res.StatusCode == http.StatusOK && mediaType(res) == ndjson {
		return remoteLines(config, res), nil
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, memoryLimit))
	if err != nil {
		return nil, noResponse(config, err)
	}
	return remoteResult(config, c, res, text)
}

// showWaiting shows how many seconds the server has taken so far, until stop is called.
func showWaiting(ctx context.Context) (stop func()) {
	ctx, stop = context.WithCancel(ctx)
	go func() {
		for seconds := int64(1); async.Sleep(ctx, time.Second); seconds++ {
			callOf(ctx).report(seconds, -1, "s: waiting for the server")
		}
	}()
	return stop
}

// mediaType returns the response's Content-Type without parameters.
func mediaType(res *http.Response) string {
	return strings.Split(res.Header.Get("Content-Type"), ";")[0]
}

// remoteResult returns the result or the failure in a response.
func remoteResult(config *Config, c *Command, res *http.Response, text []byte) (any, error) {
	document, err := rawjson.Compact(bytes.Clone(text))
	switch {
	case c == checkCmd && res.StatusCode == outage.status && string(document) == `{"status":"KO"}`:
		return Health{"KO"}, nil
	case mediaType(res) == "application/problem+json":
		return nil, remoteFailure(config, res, text)
	case res.StatusCode/100 == 3:
		return nil, fail(misconfigured, "the server at APP_URL, %s, redirects to %s: set APP_URL to the address of the service itself", appURL(config), res.Header.Get("Location"))
	case c == whichCmd && res.StatusCode/100 == 2 && mediaType(res) == "text/plain":
		return Text(config.mask().Bytes(bytes.TrimSuffix(text, []byte("\n")))), nil
	case res.StatusCode/100 != 2, c == whichCmd, err != nil, document[0] != '{':
		return nil, foreignResponse(config, res)
	case c.Columns == "":
		return document, nil
	}
	for name, value := range rawjson.Members(document) {
		if value[0] == '[' { // the first array holds the list's elements
			rows := sliceRows(rawjson.Elements(value), func(row json.RawMessage) json.RawMessage { return row })
			return &List{Name: name, Rows: rows, Rest: rawjson.Set(document, name, nil), Next: nextPage(res)}, nil
		}
	}
	return nil, foreignResponse(config, res)
}

// nextLink matches the parameter of the next page in a Link header.
var nextLink = regexp.MustCompile(`[?&]((?:page|cursor)=[^&>]*)[^>]*>; rel="next"`)

// nextPage returns the parameters of the next page, nil for none.
func nextPage(res *http.Response) (next url.Values) {
	if found := nextLink.FindStringSubmatch(strings.Join(res.Header.Values("Link"), "\n")); found != nil {
		next, _ = url.ParseQuery(found[1]) // another server may send an invalid query
	}
	return next
}

// remoteLines returns the list that a server sends as one element per line, and reads it as it arrives.
func remoteLines(config *Config, res *http.Response) *List {
	return &List{
		Next: nextPage(res),
		Rows: func(yield func(json.RawMessage, error) bool) {
			defer res.Body.Close()
			lines := bufio.NewScanner(res.Body)
			lines.Buffer(nil, memoryLimit)
			for lines.Scan() && lines.Err() == nil { // with an error, the line is cut off
				row, err := rawjson.Compact(lines.Bytes())
				switch {
				case err != nil:
					err = foreignResponse(config, res)
				case bytes.HasPrefix(row, []byte(`{"error":`)):
					err = remoteFailure(config, res, rawjson.Get(row, "error"))
				}
				if !yield(row, err) || err != nil {
					return
				}
			}
			if err := lines.Err(); err != nil {
				yield(nil, noResponse(config, err))
			}
		},
	}
}

// remoteFailure turns problem details back into the failure that they describe.
func remoteFailure(config *Config, res *http.Response, text []byte) error {
	var p problem
	err := json.Unmarshal(text, &p)
	kind, known := kindOf(p.Type, p.Status)
	if err != nil || !known {
		return foreignResponse(config, res)
	}
	f := &Failure{kind: kind, detail: p.Detail, fields: p.Errors, upstream: p.UpstreamStatus, requestID: p.RequestID}
	switch {
	case kind == unauthorized && res.Request.Header.Get("Authorization") != "":
		f.detail = fmt.Sprintf("the server at APP_URL, %s, refuses the token in API_TOKEN", appURL(config))
	case kind == unauthorized:
		f.detail = fmt.Sprintf("the server at APP_URL, %s, wants one of its tokens: set API_TOKEN", appURL(config))
	}
	if seconds, err := strconv.Atoi(res.Header.Get("Retry-After")); err == nil {
		f.wait = time.Duration(seconds) * time.Second
	}
	return f
}

// noResponse returns the failure of a request that got no complete response.
func noResponse(config *Config, err error) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	if inside, ok := errors.AsType[*url.Error](err); ok { // it repeats the URL
		err = inside.Err
	}
	return fail(unavailable, "the server at APP_URL, %s, does not answer: %w", appURL(config), err)
}

// foreignResponse returns the failure for a response that this service would not send.
func foreignResponse(config *Config, res *http.Response) error {
	return fail(badGateway, "the server at APP_URL, %s, answered %d, but not as this service would: check APP_URL and any proxy in front of it", appURL(config), res.StatusCode)
}

// appURL returns APP_URL without the password.
func appURL(config *Config) string {
	u, _ := url.Parse(config.AppURL) // the setting has validated it
	return u.Redacted()
}

// printCurl prints the request that runs the operation on the server at APP_URL or else at ADDR, as a shell
// command. The token stays in the environment.
func (c *cli) printCurl(ctx context.Context, command *Command) error {
	base := "http://" + localAddress(c.config.Addr)
	if c.config.AppURL != "" {
		base = appURL(c.config)
	}
	req, err := newRequest(ctx, base, command, c.args)
	if err != nil {
		return err
	}
	words := []string{"curl"}
	impliesPost := req.Method == http.MethodPost && req.ContentLength > 0
	if req.Method != http.MethodGet && !impliesPost {
		words = append(words, "-X", req.Method)
	}
	switch tokens, setting := c.config.ownTokens(); {
	case command.Open || len(tokens) == 0:
	case len(tokens) == 1:
		words = append(words, "-H", `"Authorization: Bearer $`+setting+`"`)
	default:
		words = append(words, "-H", `"Authorization: Bearer ${`+setting+`%%,*}"`)
	}
	if kind := map[string]string{"ndjson": ndjson, "csv": csvType}[c.output]; kind != "" {
		words = append(words, "-H", shellQuote("Accept: "+kind))
	}
	if req.ContentLength > 0 {
		body, _ := io.ReadAll(req.Body) // it is in memory
		words = append(words, "-H", shellQuote("Content-Type: application/json"), "-d", shellQuote(string(body)))
	}
	target := shellQuote(req.URL.String())
	if u, _ := url.Parse(c.config.AppURL); u.User != nil { // the user and the password stay in the environment
		target = `"${APP_URL%/}"` + shellQuote(strings.TrimPrefix(req.URL.String(), strings.TrimRight(base, "/")))
	}
	_, err = fmt.Fprintln(c.std.out, strings.Join(words, " "), target)
	return err
}

// localAddress returns the address at which a client on this machine reaches a listener.
func localAddress(address string) string {
	host, port, err := net.SplitHostPort(address)
	if err == nil && (host == "" || net.ParseIP(host).IsUnspecified()) {
		return net.JoinHostPort("localhost", port)
	}
	return address
}

// shellQuote quotes a word for a shell.
func shellQuote(word string) string { return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'" }
