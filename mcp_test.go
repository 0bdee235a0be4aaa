package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"app/internal/datadog/datadogtest"
	"app/internal/rawjson"
	"app/internal/sandbox"
)

// lastingAnswer returns an answer without the parts that vary between runs or that other files record.
func lastingAnswer(line string) string {
	line = regexp.MustCompile(`(request_id\\?":\\?")[A-Z0-9]+`).ReplaceAllString(line, "${1}…")
	line = strings.Replace(line, string(rawjson.AppendQuoted(nil, mcpInstructions)), `"…"`, 1)
	line = regexp.MustCompile(`(unknown tool .*valid: )[^)]*`).ReplaceAllString(line, "${1}…")
	return regexp.MustCompile(`"tools":\[.*\]`).ReplaceAllString(line, `"tools":["…"]`)
}

// exchanges returns the blocks of a file of recorded exchanges, each without the server's lines.
func exchanges(t *testing.T, name string) (title string, blocks [][]string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	require.NoError(t, err)
	title, rest, _ := strings.Cut(string(text), "\n\n")
	for block := range strings.SplitSeq(strings.TrimSpace(rest), "\n\n") {
		var lines []string
		for line := range strings.Lines(block) {
			if said, isClient := strings.CutPrefix(strings.TrimSpace(line), "> "); isClient {
				lines = append(lines, said)
			}
		}
		blocks = append(blocks, lines)
	}
	return title, blocks
}

// Each file records both sides of one run over standard input and output.
func TestMCPExchanges(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"initialize", "latest", "messages", "unreadable", "calls"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, 3)
			title, blocks := exchanges(t, "mcp/"+name+".txt")
			recorded := strings.Count(readDocument(t, "testdata/mcp/"+name+".txt"), "\n< ")
			input, write := io.Pipe()
			var out, problems datadogtest.LogLines
			go func() {
				defer write.Close()
				_, _ = io.WriteString(write, strings.Join(slices.Concat(blocks...), "\n")+"\n")
				assert.Eventually(t, func() bool { return strings.Count(out.String(), "\n") >= recorded },
					waitLimit, waitTick)
			}()
			exit := run(t.Context(), f.arguments("mcp"), console{input, &out, &problems, ""})
			require.Equal(t, 0, exit, problems.String())
			var answers []string
			for line := range strings.Lines(out.String()) {
				require.True(t, json.Valid([]byte(line)), line)
				answers = append(answers, lastingAnswer(line))
			}
			slices.Sort(answers) // they arrive in any order
			text := title
			for _, block := range blocks {
				text += "\n\n> " + strings.Join(block, "\n> ")
				id := rawjson.Get(json.RawMessage(block[0]), "id")
				of := func(answer string) bool { return string(rawjson.Get([]byte(answer), "id")) == string(id) }
				if len(block) > 1 {
					of = func(answer string) bool { return rawjson.Get([]byte(answer), "id") == nil }
				}
				for _, answer := range answers {
					if of(answer) {
						text += "\n< " + strings.TrimSpace(answer)
					}
				}
				answers = slices.DeleteFunc(answers, of)
			}
			assert.Empty(t, answers)
			requireGolden(t, "mcp/"+name+".txt", text+"\n")
		})
	}
}

// A file records both sides of exchanges over HTTP: headers and message, then the status and the answer.
func TestMCPExchangesOverHTTP(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 3, func(c *Config) { c.apiTokens = []string{"api-secret"} })
	text, blocks := exchanges(t, "mcp/http.txt")
	for _, block := range blocks {
		text += "\n\n> " + strings.Join(block, "\n> ")
		method, body := "POST", block[len(block)-1]
		if !strings.ContainsAny(body, " {") {
			method, body = body, ""
		}
		header := []string{"Authorization", "Bearer api-secret", "Accept", "application/json, text/event-stream"}
		for _, line := range block[:len(block)-1] {
			name, value, _ := strings.Cut(line, ": ")
			header = append(header, name, value)
		}
		got := f.do(method, "/mcp", body, header...)
		text += fmt.Sprintf("\n< %d %s", got.status, got.header.Get("Content-Type"))
		text = strings.TrimSpace(text + " " + got.header.Get("Allow") + "\n< " +
			strings.TrimSpace(lastingAnswer(got.body)))
		text = strings.TrimSuffix(text, "\n<")
	}
	requireGolden(t, "mcp/http.txt", text+"\n")
}

// callTool returns the message that calls the command as a tool.
func callTool(c *Command, arguments string) string {
	name := strings.ReplaceAll(c.Name, ".", "_")
	const call = `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":%q,"arguments":%s}}`
	return fmt.Sprintf(call, name, arguments)
}

// toolResult returns the texts in the answer to a tool call, and whether it is a failure.
func toolResult(t *testing.T, answer string) (texts []string, failed bool) {
	t.Helper()
	for _, block := range rawjson.Elements(rawjson.Get([]byte(answer), "result", "content")) {
		assert.Equal(t, `"text"`, string(rawjson.Get(block, "type")))
		texts = append(texts, rawjson.Unquote(rawjson.Get(block, "text")))
	}
	require.NotEmpty(t, texts, answer)
	return texts, string(rawjson.Get([]byte(answer), "result", "isError")) == "true"
}

// All clients accept the names and schemas of tools.
func TestMCPTools(t *testing.T) {
	t.Parallel()
	list := runShell(t, `{"jsonrpc":"2.0","id":1,"method":"tools/list"}`, "mcp")
	tools := rawjson.Elements(rawjson.Get([]byte(list.out), "result", "tools"))
	require.Len(t, tools, len(commands))
	assert.NotRegexp(t, `"(\$ref|oneOf|anyOf|allOf|outputSchema)"`, list.out)
	assert.LessOrEqual(t, len(mcpInstructions), 2000)
	for i, tool := range tools {
		name := rawjson.Unquote(rawjson.Get(tool, "name"))
		assert.Equal(t, commands[i].Name, strings.ReplaceAll(name, "_", "."), "there and back")
		assert.Regexp(t, `^[a-zA-Z0-9_-]{1,50}$`, name)
		description := rawjson.Unquote(rawjson.Get(tool, "description"))
		assert.Contains(t, description, commands[i].Short)
		assert.LessOrEqual(t, len(description), 2000)
		schema := rawjson.Get(tool, "inputSchema")
		assert.Equal(t, `"object"`, string(rawjson.Get(schema, "type")))
		assert.Equal(t, "false", string(rawjson.Get(schema, "additionalProperties")))
		for name, property := range rawjson.Members(rawjson.Get(schema, "properties")) {
			assert.Regexp(t, `^[a-zA-Z0-9_.-]{1,64}$`, name)
			assert.NotEmpty(t, rawjson.Get(property, "description"), name)
		}
		for _, hint := range []string{"readOnlyHint", "destructiveHint", "idempotentHint", "openWorldHint"} {
			assert.Regexp(t, "^(true|false)$", string(rawjson.Get(tool, "annotations", hint)), "%s of %s", hint, name)
		}
		assert.Equal(t, fmt.Sprint(!commands[i].Changes), string(rawjson.Get(tool, "annotations", "readOnlyHint")),
			name)
	}
	var indented strings.Builder
	encoder := json.NewEncoder(&indented)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	require.NoError(t, encoder.Encode(tools))
	requireGolden(t, "mcp/tools.json", indented.String())
}

// With READ_ONLY, tools that change something are unknown.
func TestMCPReadOnly(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	f.serve(newHandler(f.app, allowed(commands, true), f.config))
	call := callTool(itemsDeleteCmd, `{"id":1}`)
	for surface, ask := range map[string]func(string) string{
		"http":  func(message string) string { return f.do("POST", "/mcp", message).body },
		"stdio": func(message string) string { return f.runWith(message, "mcp", "-read-only").out },
	} {
		list := ask(`{"jsonrpc":"2.0","id":1,"method":"tools/list"}`)
		assert.Contains(t, list, `"items_sync"`, surface)
		assert.NotContains(t, list, "delete", surface)
		assert.Equal(t, "-32602", string(rawjson.Get([]byte(ask(call)), "error", "code")), surface)
	}
}

// A read token sees the tools that READ_ONLY leaves. A call to another one fails and says why.
func TestMCPReadToken(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1, func(c *Config) {
		c.apiTokens, c.apiReadTokens = []string{"api-secret"}, []string{"read-secret"}
	})
	ask := func(message string) string {
		return f.do("POST", "/mcp", message, "Authorization", "Bearer read-secret").body
	}
	list := ask(`{"jsonrpc":"2.0","id":1,"method":"tools/list"}`)
	assert.Contains(t, list, `"items_sync"`)
	assert.NotContains(t, list, "items_delete")
	texts, failed := toolResult(t, ask(callTool(itemsDeleteCmd, `{"id":1}`)))
	assert.True(t, failed)
	assert.Contains(t, texts[0], `"type":"/problems/auth"`)
	assert.Contains(t, texts[0], "needs one of the tokens in API_TOKEN")
}

// The end of a list that is too long is left out, and a note says how to read it.
func TestMCPLongLists(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 100)
	read := func(c *Command, arguments string) (list []json.RawMessage, text, note string) {
		texts, failed := toolResult(t, f.do("POST", "/mcp", callTool(c, arguments)).body)
		require.False(t, failed, texts)
		texts = append(texts, "")
		assert.LessOrEqual(t, len(texts[0]), maxToolList)
		for name, value := range rawjson.Members([]byte(strings.TrimSpace(texts[0]))) {
			if value[0] == '[' {
				assert.Contains(t, []string{"items", "reports", "occurrences"}, name)
				list = rawjson.Elements(value)
			}
		}
		return list, texts[0], texts[1]
	}
	items, text, note := read(itemsListCmd, `{}`)
	whole := f.get("/items")
	assert.Greater(t, len(items), 10)
	left := len(whole.list("items")) - len(items)
	assert.Contains(t, note, fmt.Sprintf("The last %d of %d items are left out", left, left+len(items)))
	firstLeft := rawjson.Get(whole.list("items")[len(items)], "id")
	assert.Contains(t, note, fmt.Sprintf(`the first of them has the id %s. `, firstLeft))
	assert.Contains(t, note, fmt.Sprintf(`"limit": %d; "page" then counts pages of that size.`, len(items)))
	assert.Equal(t, whole.at("total_count"), string(rawjson.Get([]byte(text), "total_count")))

	_, text, note = read(reportsListCmd, `{"limit":60}`)
	assert.Contains(t, note, `then follow "next" in its result`)
	assert.NotEqual(t, "null", string(rawjson.Get([]byte(strings.TrimSpace(text)), "next")))

	_, _, note = read(itemsListCmd, `{"limit":2}`)
	assert.Empty(t, note)

	f.exec(`UPDATE reports SET data = jsonb_set(data::jsonb, '{title}', to_jsonb(repeat('x', 40000)))::json`)
	reports, _, note := read(reportsListCmd, `{"limit":3}`)
	assert.Empty(t, reports)
	assert.Contains(t, note, `The last 3 of 3 reports`)
	assert.Contains(t, note, `"limit": 1;`)
	assert.Contains(t, note, "too long for any list: read it by its id")
}

// A check that finds PostgreSQL down is a failure, and reveals as little as over HTTP.
func TestMCPCheckWithoutDatabase(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1, func(c *Config) { c.DatabaseURL = "postgres://app:hunter2@127.0.0.1:1/app" })
	texts, failed := toolResult(t, f.do("POST", "/mcp", callTool(checkCmd, `{}`)).body)
	assert.True(t, failed)
	assert.Contains(t, texts[0], `"type":"/problems/unavailable"`)
	assert.Contains(t, texts[0], `"detail":"check answered {\"status\":\"KO\"}"`)
	item := f.do("POST", "/mcp", callTool(itemsListCmd, `{"limit":1}`))
	assert.Equal(t, "false", item.header.Get("Report-Stored"))
}

// A conversation is a running app mcp.
type conversation struct {
	t       *testing.T
	in      io.WriteCloser
	answers *bufio.Scanner
	ended   chan int // gets the exit code
}

func (f *fixture) converse(t *testing.T, args ...string) *conversation {
	t.Helper()
	in, toServer := io.Pipe()
	fromServer, out := io.Pipe()
	c := &conversation{t, toServer, bufio.NewScanner(fromServer), make(chan int, 1)}
	settings := []string{
		"mcp", "-rollbar-url=" + f.config.RollbarURL, "-rollbar-read-token=" + f.config.readToken,
		"-database-url=" + f.config.DatabaseURL,
	}
	ctx := t.Context()
	go func() {
		c.ended <- run(ctx, append(settings, args...), console{in, out, io.Discard, ""})
		out.Close()
	}()
	t.Cleanup(func() { toServer.Close(); fromServer.Close() })
	return c
}

func (c *conversation) say(line string) {
	c.t.Helper()
	_, err := io.WriteString(c.in, line+"\n")
	require.NoError(c.t, err)
}

func (c *conversation) hear() string {
	c.t.Helper()
	require.True(c.t, c.answers.Scan())
	return c.answers.Text()
}

// A slow call does not block others. It can be cancelled, and then gets no answer.
func TestMCPConcurrencyAndCancel(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 3)
	f.sandbox.SetFault(sandbox.Slow)
	c := f.converse(t)
	ping := `{"jsonrpc":"2.0","id":"p","method":"ping"}`
	c.say(callTool(itemsListCmd, `{}`))
	require.Eventually(t, func() bool { return len(f.sandbox.Requests()) == 1 }, waitLimit, waitTick)
	c.say(ping)
	assert.Equal(t, `{"id":"p","jsonrpc":"2.0","result":{}}`, c.hear())
	c.say(`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1,"reason":"x"}}`)
	f.sandbox.SetFault(sandbox.None)
	c.say(callTool(whichCmd, `{}`)) // reuses the id
	texts, _ := toolResult(t, c.hear())
	assert.Equal(t, []string{"app dev\n"}, texts)
	c.in.Close()
	assert.Equal(t, 0, <-c.ended)
	assert.False(t, c.answers.Scan())
}

// A result from the archive is the same text as elsewhere; over HTTP the header says where it comes from.
func TestMCPFromTheArchive(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	path := fmt.Sprintf("/items/%d", f.sandbox.ItemIDs()[0])
	require.Equal(t, 200, f.get(path).status)
	f.sandbox.SetFault(sandbox.Down)
	call := callTool(itemsGetCmd, fmt.Sprintf(`{"id":%d}`, f.sandbox.ItemIDs()[0]))
	overHTTP, onStdio := f.do("POST", "/mcp", call), f.converse(t)
	assert.Equal(t, "archive", overHTTP.header.Get("Report-Source"))
	onStdio.say(call)
	for _, answer := range []string{overHTTP.body, onStdio.hear()} {
		texts, failed := toolResult(t, answer)
		assert.False(t, failed)
		assert.Equal(t, []string{f.get(path).body}, texts)
	}
}

// No failure quotes a secret from the settings, even if the caller sent it.
func TestMCPHidesSecrets(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1, func(c *Config) { c.apiTokens = []string{"api-secret"} })
	message := strings.Replace(callTool(itemsListCmd, `{"api-secret":1}`), `"id":1`, `"id":"api-secret"`, 1) + "\n" +
		strings.Replace(callTool(itemsListCmd, `{}`), "items_list", "api-secret", 1)
	overHTTP := ""
	for line := range strings.Lines(message) {
		overHTTP += f.call("POST", "/mcp", line).body
	}
	for _, answers := range []string{overHTTP, f.runWith(message, "mcp", "-api-token=api-secret").out} {
		assert.Contains(t, answers, `unknown argument \\\"***\\\"`)
		assert.Contains(t, answers, `unknown tool \"***\"`)
		assert.Contains(t, answers, `"id":"api-secret"`)
	}
}

// A client that goes away cancels its call.
func TestMCPInterrupted(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 3)
	f.sandbox.SetFault(sandbox.Slow)
	ctx, goAway := newContext(t)
	call := strings.NewReader(callTool(itemsListCmd, `{}`))
	req, err := http.NewRequestWithContext(ctx, "POST", f.url+"/mcp", call)
	require.NoError(t, err)
	ended := make(chan error)
	go func() {
		_, err := http.DefaultClient.Do(req)
		ended <- err
	}()
	require.Eventually(t, func() bool { return len(f.sandbox.Requests()) == 1 }, waitLimit, waitTick)
	goAway()
	require.ErrorIs(t, <-ended, context.Canceled)
	logged := func() bool { return strings.Contains(f.log.String(), `"http.status_code":499`) }
	require.Eventually(t, logged, waitLimit, waitTick)
}

// A panic in one tool fails one call.
func TestMCPPanic(t *testing.T) {
	t.Parallel()
	s := &mcpServer{commands: commands, failureOf: failureWithCause}
	s.run = func(context.Context, *Command, arguments, prepared) (any, error) { panic("hunter2") }
	var out, err bytes.Buffer
	input := callTool(whichCmd, `{}`) + "\n" + `{"jsonrpc":"2.0","id":2,"method":"ping"}`
	require.NoError(t, s.serveLines(t.Context(), console{in: strings.NewReader(input), out: &out, err: &err}))
	assert.ElementsMatch(t, []string{
		`{"error":{"code":-32603,"message":"internal error"},"id":1,"jsonrpc":"2.0"}`,
		`{"id":2,"jsonrpc":"2.0","result":{}}`,
	}, strings.Split(strings.TrimSpace(out.String()), "\n"))
	assert.Contains(t, err.String(), "app: panic: hunter2\ngoroutine ")
}

// At the end of the input, calls in flight get half a second.
func TestMCPEndOfInput(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 3)
	quick := f.runWith(callTool(itemsListCmd, `{"limit":1}`), "mcp") // the last line has no line end
	_, failed := toolResult(t, quick.out)
	assert.False(t, failed)

	f.sandbox.SetFault(sandbox.Slow)
	began := time.Now()
	assert.Equal(t, shell{0, "", ""}, f.runWith(callTool(itemsListCmd, `{}`)+"\n", "mcp"))
	assert.GreaterOrEqual(t, time.Since(began), mcpEndGrace)
	assert.Less(t, time.Since(began), 18*mcpEndGrace, "and not the time limit of calls to Rollbar")
	assert.Equal(t, shell{0, "", ""}, f.runWith("", "mcp"))
	assert.Equal(t, shell{0, "", ""}, f.runWith("\n\r\n  \n", "mcp"))
}

// Standard output carries only JSON-RPC, whatever fails and however much is logged.
func TestMCPStandardOutput(t *testing.T) {
	t.Parallel()
	input := callTool(reportsListCmd, `{}`) + "\n" + callTool(checkCmd, `{}`) + "\n{\n" + callTool(itemsListCmd, `{}`)
	for _, url := range []string{"postgres://app:hunter2@127.0.0.1:1/app", "postgres://app@localhost/%zz", "nonsense"} {
		cmd := program(t, []string{"DATABASE_URL=" + url, "LOG_LEVEL=debug", "SANDBOX=true"}, "mcp")
		cmd.Stdin = strings.NewReader(input)
		out, err := cmd.Output()
		if exit := (*exec.ExitError)(nil); url != "postgres://app:hunter2@127.0.0.1:1/app" {
			require.ErrorAs(t, err, &exit)
			assert.Equal(t, 3, exit.ExitCode(), url)
			assert.Empty(t, out)
			continue
		}
		require.NoError(t, err)
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		assert.Len(t, lines, 4)
		for _, line := range lines {
			assert.Equal(t, `"2.0"`, string(rawjson.Get([]byte(line), "jsonrpc")), line)
		}
		assert.NotContains(t, string(out), "hunter2")
	}
}

// With APP_URL the tools call that server, and its refusals are results.
func TestMCPWithAServer(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 3, func(c *Config) { c.apiTokens = []string{"api-secret"} })
	call := callTool(itemsListCmd, `{"limit":2.0,"status":["active","muted"]}`)
	texts, failed := toolResult(t, runShell(t, call, "mcp", "-app-url="+f.url, "-api-token=api-secret").out)
	assert.False(t, failed, texts)
	assert.Equal(t, f.call("GET", "/items?limit=2&status=active&status=muted", "").body, texts[0])
	texts, failed = toolResult(t, runShell(t, call, "mcp", "-app-url="+f.url).out)
	assert.True(t, failed)
	assert.Contains(t, texts[0], `"type":"/problems/auth"`)
}

// Spans and metrics carry the operation's name, and spans continue the message's trace.
func TestMCPTelemetry(t *testing.T) {
	t.Parallel()
	f, agent := newObserved(t)
	const trace = "0af7651916cd43dd8448eb211c80319c"
	call := strings.Replace(callTool(itemsListCmd, `{"limit":1}`), `"params":{`,
		`"params":{"_meta":{"traceparent":"00-`+trace+`-00f067aa0ba902b7-01"},`, 1)
	require.Equal(t, 200, f.call("POST", "/mcp", call).status)
	spans := agent.Trace("GET /items")
	assert.Equal(t, trace, spans[0].ID128())
	assert.Equal(t, "items.list", spans[0].Meta["operation"])
	assert.Equal(t, 1, kinds(spans)["http GET /api/1/items/"])
	assert.Equal(t, "web", agent.Trace("POST /mcp")[0].Type)
	agent.MetricsUntil("app.operations", "operation:items.list", "surface:mcp", "outcome:ok")
	assert.Equal(t, 200, f.call("POST", "/mcp", callTool(itemsGetCmd, `{"id":"x"}`)).status)
	agent.MetricsUntil("app.operations", "operation:items.get", "surface:mcp", "outcome:usage")
	lines := f.log.Lines()
	assert.Equal(t, "items.get", lines[len(lines)-1]["operation"])
	assert.Equal(t, "usage", lines[len(lines)-1]["error.kind"])

	env := []string{"DD_TRACE_AGENT_URL=http://" + agent.Address, "APP_URL=" + f.url, "API_TOKEN=api-secret"}
	cmd := program(t, env, "mcp")
	cmd.Stdin = strings.NewReader(call)
	require.NoError(t, cmd.Run())
	for range 2 { // ours and the server's
		assert.Equal(t, trace, agent.Trace("GET /items")[0].ID128())
	}
}

// Whatever the input, the answer is one line of JSON with the message's id, or there is none.
func FuzzMCP(f *testing.F) {
	f.Add(`{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{"_meta":[]}}`, "", "")
	f.Add(`{"jsonrpc":"2.0","id":"a","method":"tools/call","params":{"name":"nothing"}}`, mcpLatest, "tools/call")
	f.Add(`{"jsonrpc":"2.0","id":1e5,"method":"initialize","params":{"protocolVersion":{}}}`, "", "=?base64?eA==?=")
	f.Add("\xff\x00[{}]", "\n", "")
	s := &mcpServer{failureOf: failureOf}
	f.Fuzz(func(t *testing.T, text, version, method string) {
		header := httptest.NewRequest("POST", "/", nil).Header
		header.Set("Mcp-Protocol-Version", version)
		header.Set("Mcp-Method", method)
		for _, m := range []*mcpMessage{readMCP([]byte(text), nil), readMCP([]byte(text), header)} {
			if m.id == nil && m.err == nil {
				continue
			}
			var line bytes.Buffer
			require.NoError(t, writeResult(&line, s.answer(t.Context(), m)))
			require.True(t, json.Valid(line.Bytes()), line.String())
			require.Equal(t, 1, strings.Count(line.String(), "\n"))
			require.Equal(t, string(m.id), string(rawjson.Get(line.Bytes(), "id")))
		}
	})
}

// Messages are read whatever their line ends, and one that is too long is refused.
func TestMCPLines(t *testing.T) {
	t.Parallel()
	ping := `{"jsonrpc":"2.0","id":1,"method":"ping"}`
	long := `{"jsonrpc":"2.0","id":1,"method":"ping","params":{"x":"` + strings.Repeat("x", maxBody) + `"}}`
	fits := `{"jsonrpc":"2.0","id":2,"method":"ping","params":{"x":"` + strings.Repeat("x", maxBody-100) + `"}}`
	got := runShell(t, ping+"\r\n\n"+long+"\n"+fits, "mcp")
	lines := strings.Split(strings.TrimSpace(got.out), "\n")
	slices.Sort(lines)
	assert.Equal(t, []string{
		fmt.Sprintf(`{"error":{"code":-32600,"message":"the message is larger than %d bytes"},"jsonrpc":"2.0"}`,
			maxBody),
		`{"id":1,"jsonrpc":"2.0","result":{}}`,
		`{"id":2,"jsonrpc":"2.0","result":{}}`,
	}, lines)
}
