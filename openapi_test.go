package main

import (
	"encoding/json"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"app/internal/rawjson"
)

// document gets the description of the routes.
func (f *fixture) document() map[string]map[string]map[string]any {
	f.t.Helper()
	got := f.do("GET", openAPIPath, "", "Authorization", "Bearer token")
	require.Equal(f.t, 200, got.status, got.body)
	require.Equal(f.t, "application/json", got.header.Get("Content-Type"))
	var document struct {
		OpenAPI string
		Paths   map[string]map[string]map[string]any
	}
	require.NoError(f.t, json.Unmarshal([]byte(got.body), &document))
	require.Equal(f.t, "3.1.0", document.OpenAPI)
	return document.Paths
}

// The document is golden: go test -update rewrites it.
func TestOpenAPI(t *testing.T) {
	t.Parallel()
	text, err := openAPI(commands, true)
	require.NoError(t, err)
	requireGolden(t, "openapi.json", strings.Replace(string(text), buildVersion(), "VERSION", 1)+"\n")
}

func TestSchemaOf(t *testing.T) {
	t.Parallel()
	type result struct {
		Counts map[string]int64 `json:"counts"`
		Share  *float64         `json:"share,omitempty"`
		Done   bool             `json:"done"`
	}
	got, err := json.Marshal(schemaOf(reflect.TypeFor[result]()))
	require.NoError(t, err)
	assert.JSONEq(t, `{"type":"object","required":["counts","done"],"properties":{
		"counts":{"type":"object","additionalProperties":{"type":"integer"}},"share":{"type":"number"},"done":{"type":"boolean"}}}`, string(got))
	assert.PanicsWithValue(t, "chan int is no type for a result", func() { schemaOf(reflect.TypeFor[chan int]()) })
}

// Each route is there, with all that it takes, by the names of the commands.
func TestOpenAPIHasAllRoutes(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	paths := f.document()
	ids := map[string]bool{}
	for _, c := range commands {
		for _, route := range c.routes() {
			method, path, _ := strings.Cut(route, " ")
			operation := paths[path][strings.ToLower(method)]
			require.NotNil(t, operation, route)
			id := operation["operationId"].(string)
			assert.False(t, ids[id], "%s is there twice", id)
			ids[id] = true
			taken := 0
			parameters, _ := operation["parameters"].([]any)
			for _, p := range parameters {
				parameter := p.(map[string]any)
				assert.True(t, c.has(place(parameter["in"].(string)), parameter["name"].(string)), "%s %v", route, parameter["name"])
				taken++
			}
			if body, ok := operation["requestBody"].(map[string]any); ok {
				for name := range body["content"].(map[string]any)["application/json"].(map[string]any)["schema"].(map[string]any)["properties"].(map[string]any) {
					assert.True(t, c.has(inBody, name), "%s %s", route, name)
					taken++
				}
			}
			assert.Equal(t, len(c.Run.params)-len(c.names(inFlag)), taken, route)
		}
	}
	assert.True(t, ids["items.update"])
	assert.True(t, ids["items.update.put"])
	f.do("POST", openAPIPath, "").requireProblem(405, "usage")
	assert.Equal(t, 200, f.do("HEAD", openAPIPath, "").status)
}

// What is promised of answers is what comes.
func TestOpenAPIOfAnswers(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 3)
	paths := f.document()
	for _, tt := range []struct{ method, path, route, body, status string }{
		{"GET", "/check", "/check", "", "200"},
		{"GET", "/items", "/items", "", "200"},
		{"POST", "/items", "/items", `{"message":"x"}`, "201"},
		{"GET", "/items/1705000001/occurrences", "/items/{id}/occurrences", "", "200"},
		{"DELETE", "/items/1705000001", "/items/{id}", "", "200"},
		{"POST", "/items/sync", "/items/sync", "", "200"},
		{"GET", "/reports", "/reports", "", "200"},
		{"POST", "/reports/deliver", "/reports/deliver", "", "200"},
		{"DELETE", "/reports", "/reports", "", "200"},
	} {
		got := f.do(tt.method, tt.path, tt.body)
		answer, _ := paths[tt.route][strings.ToLower(tt.method)]["responses"].(map[string]any)[tt.status].(map[string]any)
		require.NotNil(t, answer, "%s %s answered %d: %s", tt.method, tt.path, got.status, got.body)
		schema := answer["content"].(map[string]any)["application/json"].(map[string]any)["schema"].(map[string]any)
		var names []string
		for name, value := range rawjson.Members([]byte(strings.TrimSpace(got.body))) {
			names = append(names, name)
			kind := schema["properties"].(map[string]any)[name].(map[string]any)["type"]
			switch {
			case value[0] == '[':
				assert.Equal(t, "array", kind)
			case value[0] == '"':
				assert.Contains(t, kind, "string")
			}
		}
		for name := range schema["properties"].(map[string]any) {
			assert.True(t, slices.Contains(names, name), "%s: %s", tt.path, name)
		}
	}
}

// The document is as open as what it describes, and names nothing that is not there.
func TestOpenAPIWithTokensAndReadOnly(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0, func(c *Config) { c.apiTokens = []string{"token"} })
	f.get(openAPIPath).requireProblem(401, "auth")
	paths := f.document()
	assert.Nil(t, paths["/which"]["get"]["security"])
	assert.NotNil(t, paths["/items"]["get"]["security"])
	assert.NotContains(t, f.do("GET", openAPIPath, "", "Authorization", "Bearer token").body, "Bearer token")

	f.serve(newHandler(f.app, allowed(commands, true), nil))
	paths = f.document()
	assert.Contains(t, paths["/items"], "get")
	assert.NotContains(t, paths["/items"], "post")
	assert.NotContains(t, paths["/items/{id}"], "delete")
	assert.NotContains(t, paths, "/reports/deliver")
	for path, methods := range paths {
		for method := range methods {
			assert.True(t, method == strings.ToLower(http.MethodGet) || path == "/items/sync", "%s %s", method, path)
		}
	}
}
