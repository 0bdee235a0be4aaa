package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// An apiDocument is the part of the OpenAPI document that the tests look at.
type apiDocument struct {
	OpenAPI    string
	Servers    []map[string]string
	Security   []map[string][]string
	Paths      map[string]map[string]map[string]any
	Components struct{ Schemas map[string]map[string]any }
}

// document gets the OpenAPI document.
func (f *fixture) document() apiDocument {
	f.t.Helper()
	got := f.do("GET", openAPIPath, "", "Authorization", "Bearer token")
	require.Equal(f.t, 200, got.status, got.body)
	require.Equal(f.t, "application/json", got.header.Get("Content-Type"))
	var document apiDocument
	require.NoError(f.t, json.Unmarshal([]byte(got.body), &document))
	require.Equal(f.t, "3.1.0", document.OpenAPI)
	return document
}

// schema returns the schema of a request's or response's JSON content.
func (d *apiDocument) schema(of any) any {
	content := of.(map[string]any)["content"].(map[string]any)
	return content["application/json"].(map[string]any)["schema"]
}

// misfit returns where and why the value violates the schema, or "".
func (d *apiDocument) misfit(schema, value any, at string) string {
	s := schema.(map[string]any)
	if name, ok := s["$ref"].(string); ok {
		return d.misfit(d.Components.Schemas[strings.TrimPrefix(name, "#/components/schemas/")], value, at)
	}
	if choices, ok := s["oneOf"].([]any); ok {
		misfits := slices.DeleteFunc(slices.Clone(choices), func(c any) bool { return d.misfit(c, value, at) == "" })
		if len(choices)-len(misfits) == 1 {
			return ""
		}
		return at + ": not one of the choices"
	}
	kind := "null"
	switch value := value.(type) {
	case string:
		kind = "string"
	case bool:
		kind = "boolean"
	case json.Number:
		kind = "integer"
	case []any:
		kind = "array"
		for i, element := range value {
			if found := d.misfit(s["items"], element, fmt.Sprintf("%s[%d]", at, i)); found != "" {
				return found
			}
		}
	case map[string]any:
		kind = "object"
		if found := d.misfitObject(s, value, at); found != "" {
			return found
		}
	}
	kinds, several := s["type"].([]any)
	if !several {
		kinds = []any{s["type"]}
	}
	if enum, ok := s["enum"].([]any); !slices.Contains(kinds, any(kind)) || ok && !slices.Contains(enum, value) {
		return fmt.Sprintf("%s: %v is not of %v %v", at, value, kinds, enum)
	}
	return ""
}

func (d *apiDocument) misfitObject(schema, value map[string]any, at string) string {
	required, _ := schema["required"].([]any)
	for _, name := range required {
		if _, ok := value[name.(string)]; !ok {
			return at + ": no " + name.(string)
		}
	}
	if least, _ := schema["minProperties"].(float64); len(value) < int(least) {
		return at + ": too few members"
	}
	properties, _ := schema["properties"].(map[string]any)
	for name, member := range value {
		property, known := properties[name]
		switch {
		case known:
			if found := d.misfit(property, member, at+"."+name); found != "" {
				return found
			}
		case schema["additionalProperties"] != true:
			return at + ": has " + name
		}
	}
	return ""
}

// requireFit checks that a JSON text fits the schema.
func (d *apiDocument) requireFit(t *testing.T, schema any, text string) {
	t.Helper()
	assert.Empty(t, d.misfit(schema, decoded(t, text), ""), text)
}

// decoded decodes a JSON text into Go values, with numbers as they are written.
func decoded(t *testing.T, text string) (value any) {
	t.Helper()
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.UseNumber()
	require.NoError(t, decoder.Decode(&value))
	return value
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
		Share  *int64           `json:"share,omitempty"`
		Done   bool             `json:"done"`
		State  string           `json:"state" enum:"on,off"`
		At     time.Time        `json:"at"`
		Rest   json.RawMessage  `json:"-"`
	}
	schemas := jsonObject{}
	array := schemaOf(reflect.TypeFor[[]result](), schemas)
	assert.Equal(t, jsonObject{"type": "array", "items": reference("Result")}, array)
	got, err := json.Marshal(schemas)
	require.NoError(t, err)
	assert.JSONEq(t, `{"Result":{"type":"object","description":"as Rollbar sent it","additionalProperties":true,
		"required":["counts","done","state","at"],"properties":{
			"counts":{"type":"object","additionalProperties":{"type":"integer","format":"int64"}},
			"share":{"type":["integer","null"],"format":"int64"},"done":{"type":"boolean"},
			"state":{"type":"string","enum":["on","off"]},
			"at":{"type":"string","format":"date-time"}}}}`, string(got))
	assert.PanicsWithValue(t, "a result cannot have the type chan int", func() {
		schemaOf(reflect.TypeFor[chan int](), schemas)
	})
}

// The document has each route with all of its parameters, under the name of its command.
func TestOpenAPIHasAllRoutes(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	document := f.document()
	ids := map[string]bool{}
	for _, c := range commands {
		for _, route := range c.routes() {
			method, path, _ := strings.Cut(route, " ")
			operation := document.Paths[path][strings.ToLower(method)]
			require.NotNil(t, operation, route)
			id := operation["operationId"].(string)
			assert.False(t, ids[id], "%s is there twice", id)
			ids[id] = true
			taken := map[string]bool{}
			for _, p := range operation["parameters"].([]any) {
				parameter := p.(map[string]any)
				if name := parameter["name"].(string); name != "If-None-Match" {
					assert.True(t, c.has(place(parameter["in"].(string)), name), "%s %s", route, name)
					taken[name] = true
				}
			}
			for name, schema := range document.Components.Schemas {
				properties, _ := schema["properties"].(map[string]any)
				if name == c.Name || strings.HasPrefix(name, c.Name+".") {
					for name := range properties {
						assert.True(t, c.has(inBody, name), "%s %s", route, name)
						taken[name] = true
					}
				}
			}
			assert.Len(t, taken, len(c.Run.params)-len(c.names(inFlag)), route)
		}
	}
	assert.True(t, ids["items.update"])
	assert.True(t, ids["items.update.put"])
	f.do("POST", openAPIPath, "").requireProblem(405, "usage")
	assert.Equal(t, 200, f.do("HEAD", openAPIPath, "").status)
}

// Answers match their description, and their headers are described.
func TestOpenAPIOfAnswers(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 3)
	document := f.document()
	described := []string{"Etag", "Link", "Report-Stored", "Retry-After"}
	for _, test := range []struct{ method, path, route, body, status string }{
		{"GET", "/check", "/check", "", "200"},
		{"GET", "/items?limit=2", "/items", "", "200"},
		{"GET", "/items/1705000001", "/items/{id}", "", "200"},
		{"POST", "/items", "/items", `{"message":"x"}`, "201"},
		{"GET", "/items/1705000001/occurrences?limit=1", "/items/{id}/occurrences", "", "200"},
		{"PATCH", "/items/1705000001", "/items/{id}", `{"status":"muted"}`, "200"},
		{"PUT", "/items/1705000001", "/items/{id}", `{"status":"active"}`, "200"},
		{"DELETE", "/items/1705000001", "/items/{id}", "", "200"},
		{"POST", "/items/sync", "/items/sync", "", "200"},
		{"GET", "/reports?limit=3", "/reports", "", "200"},
		{"GET", "/reports/1", "/reports/{id}", "", "200"},
		{"POST", "/reports/deliver", "/reports/deliver", "", "200"},
		{"DELETE", "/reports", "/reports", "", "200"},
	} {
		got := f.do(test.method, test.path, test.body)
		responses := document.Paths[test.route][strings.ToLower(test.method)]["responses"].(map[string]any)
		response, _ := responses[test.status].(map[string]any)
		require.NotNil(t, response, "%s %s answered %d: %s", test.method, test.path, got.status, got.body)
		document.requireFit(t, document.schema(response), got.body)
		var names []string
		for name := range response["headers"].(map[string]any) {
			names = append(names, http.CanonicalHeaderKey(name))
		}
		for name := range got.header {
			assert.True(t, !slices.Contains(described, name) || slices.Contains(names, name), "%s: %s", test.path, name)
		}
		if slices.Contains(names, "Etag") {
			assert.Contains(t, responses, "304", test.path)
		}
	}
	document.requireFit(t, any(document.Components.Schemas["Problem"]), f.get("/items?limit=0").body)
}

// A body that the service refuses because of its members violates the schema, too.
func TestOpenAPIOfBodies(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	document := f.document()
	for _, test := range []struct {
		method, path, route, body string
		status                    int
	}{
		{"POST", "/items", "/items", `{"message":"x","level":"info","custom":{"n":[1]}}`, 201},
		{"POST", "/items", "/items", `{"data":{"environment":"e","body":{"message":{"body":"x"}}}}`, 201},
		{"POST", "/items", "/items", `{}`, 400},
		{"POST", "/items", "/items", `{"level":"info"}`, 400},
		{"POST", "/items", "/items", `{"message":"x","level":"fatal"}`, 400},
		{"POST", "/items", "/items", `{"message":"x","data":{"environment":"e","body":{"message":{"body":"x"}}}}`, 400},
		{"PATCH", "/items/1705000001", "/items/{id}", `{"assigned_user_id":null,"status":"muted"}`, 200},
		{"PATCH", "/items/1705000001", "/items/{id}", `{"stauts":"muted"}`, 400},
		{"PATCH", "/items/1705000001", "/items/{id}", `{}`, 400},
		{"PUT", "/items/1705000001", "/items/{id}", `{}`, 400},
	} {
		got := f.do(test.method, test.path, test.body)
		require.Equal(t, test.status, got.status, got.body)
		schema := document.schema(document.Paths[test.route][strings.ToLower(test.method)]["requestBody"])
		misfit := document.misfit(schema, decoded(t, test.body), "")
		assert.Equal(t, test.status == 400, misfit != "", "%s %s", test.body, misfit)
	}
}

// The document needs a token if its operations do, and describes nothing that is absent.
func TestOpenAPIWithTokensAndReadOnly(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0, func(c *Config) { c.apiTokens = []string{"token"} })
	f.get(openAPIPath).requireProblem(401, "auth")
	document := f.document()
	assert.Equal(t, []map[string][]string{{"token": {}}}, document.Security)
	assert.Equal(t, []any{}, document.Paths["/which"]["get"]["security"])
	assert.NotContains(t, document.Paths["/items"]["get"], "security", "it is the document's")
	assert.NotContains(t, f.do("GET", openAPIPath, "", "Authorization", "Bearer token").body, "Bearer token")

	f.serve(newHandler(f.app, allowed(commands, true), &Config{}))
	document = f.document()
	assert.Equal(t, []map[string][]string{}, document.Security)
	assert.Equal(t, ".", document.Servers[0]["url"], "relative to the document, so that a prefix holds")
	assert.Contains(t, document.Paths["/items"], "get")
	assert.NotContains(t, document.Paths["/items"], "post")
	assert.NotContains(t, document.Paths["/items/{id}"], "delete")
	assert.NotContains(t, document.Paths, "/reports/deliver")
	for path, methods := range document.Paths {
		for method := range methods {
			assert.True(t, method == strings.ToLower(http.MethodGet) || strings.HasSuffix(path, "/sync"), "%s %s",
				method, path)
		}
	}
}
