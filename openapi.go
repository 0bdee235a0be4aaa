// openapi.go describes the routes to other programs: GET /openapi.json, made from the registry.
package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"reflect"
	"strconv"
	"strings"
)

const openAPIPath = "/openapi.json"

// A jsonObject is an object of the document; its members are written in the order of their names.
type jsonObject map[string]any

// openAPI is the OpenAPI 3.1 document of the commands. Its operation ids are the commands' names; a
// second route has its method behind that.
func openAPI(commands []*Command, secured bool) ([]byte, error) {
	paths := jsonObject{}
	for _, c := range commands {
		for _, route := range c.routes() {
			method, path, _ := strings.Cut(route, " ")
			method = strings.ToLower(method)
			if paths[path] == nil {
				paths[path] = jsonObject{}
			}
			operation := c.openAPI(secured)
			if route == c.Also {
				operation["operationId"] = c.Name + "." + method
			}
			paths[path].(jsonObject)[method] = operation
		}
	}
	components := jsonObject{"schemas": jsonObject{"Problem": schemaOf(reflect.TypeFor[problem]())}}
	if secured {
		components["securitySchemes"] = jsonObject{"token": jsonObject{"type": "http", "scheme": "bearer"}}
	}
	return json.MarshalIndent(jsonObject{
		"openapi": "3.1.0",
		"info": jsonObject{
			"title":       "app",
			"version":     buildVersion(),
			"description": "Rollbar over HTTP, with everything it saw kept in PostgreSQL.",
		},
		"paths":      paths,
		"components": components,
	}, "", "  ")
}

// openAPI describes the command.
func (c *Command) openAPI(secured bool) jsonObject {
	operation := jsonObject{"operationId": c.Name, "summary": c.Short, "tags": []string{c.words()[0]}, "responses": c.responses()}
	if c.Long != "" {
		operation["description"] = c.Long
	}
	if secured && !c.Open {
		operation["security"] = []jsonObject{{"token": []string{}}}
	}
	parameters, properties, required := []jsonObject{}, jsonObject{}, []string{}
	for _, p := range c.Run.params {
		switch p.in {
		case inPath, inQuery:
			parameters = append(parameters, jsonObject{
				"name": p.name, "in": string(p.in), "description": p.help, "required": p.in == inPath || p.required, "schema": p.schema(),
			})
		case inBody:
			schema := p.schema()
			schema["description"] = p.help
			properties[p.name] = schema
			if p.required {
				required = append(required, p.name)
			}
		}
	}
	if len(parameters) > 0 {
		operation["parameters"] = parameters
	}
	if len(properties) > 0 {
		body := jsonObject{"type": "object", "properties": properties, "additionalProperties": false}
		if len(required) > 0 {
			body["required"] = required
		}
		operation["requestBody"] = jsonObject{"required": true, "content": content("application/json", body)}
	}
	return operation
}

func content(mediaType string, schema any) jsonObject {
	return jsonObject{mediaType: jsonObject{"schema": schema}}
}

// schema is what a value of the parameter is.
func (p *param) schema() jsonObject {
	schema := jsonObject{"type": "string"}
	switch p.kind {
	case kindNumber:
		schema = jsonObject{"type": "integer", "format": "int64"}
		p.bounded(schema, "minimum", "maximum")
	case kindBool:
		schema["type"] = "boolean"
	case kindObject:
		schema["type"] = "object"
	case kindText:
		p.bounded(schema, "minLength", "maxLength")
	}
	if len(p.enum) > 0 {
		schema["enum"] = p.enum
	}
	if p.value != "" {
		schema["default"] = json.RawMessage(p.value)
		if schema["type"] == "string" {
			schema["default"] = p.value
		}
	}
	if p.nullable {
		schema["type"] = []any{schema["type"], "null"}
	}
	if p.repeated {
		return jsonObject{"type": "array", "items": schema}
	}
	return schema
}

func (p *param) bounded(schema jsonObject, least, most string) {
	if p.min != math.MinInt64 {
		schema[least] = p.min
	}
	if p.max != math.MaxInt64 {
		schema[most] = p.max
	}
}

// responses are the answers: those of success, which is all that differs, and problems.
func (c *Command) responses() jsonObject {
	responses := jsonObject{
		"default": jsonObject{
			"description": "A failure",
			"content":     content("application/problem+json", jsonObject{"$ref": "#/components/schemas/Problem"}),
		},
	}
	for _, o := range c.Run.outcomes() {
		answer := jsonObject{"description": http.StatusText(o.status)}
		switch c.Run.out {
		case reflect.TypeFor[Text]():
			answer["content"] = content("text/plain", jsonObject{"type": "string"})
		case reflect.TypeFor[*List]():
			answer["content"] = jsonObject{
				"application/json": jsonObject{"schema": c.listSchema()},
				ndjson:             jsonObject{"schema": jsonObject{"type": "object"}},
			}
		default:
			answer["content"] = content("application/json", schemaOf(c.Run.out))
		}
		responses[strconv.Itoa(o.status)] = answer
	}
	return responses
}

// listSchema is the object that holds the elements of a list and says where its page is.
func (c *Command) listSchema() jsonObject {
	properties := jsonObject{c.elements(): jsonObject{"type": "array", "items": jsonObject{"type": "object"}}}
	if c.has(inQuery, "page") {
		properties["page"] = jsonObject{"type": "integer"}
		properties["total_count"] = jsonObject{"type": []string{"integer", "null"}}
	} else {
		properties["next"] = jsonObject{"type": []string{"string", "null"}, "description": "the cursor of the next page"}
	}
	return jsonObject{"type": "object", "properties": properties}
}

// schemaOf is the schema of a result by its JSON tags. It panics for types that no result should have.
func schemaOf(t reflect.Type) jsonObject {
	switch t.Kind() {
	case reflect.Struct:
		properties, required := jsonObject{}, []string{}
		for _, field := range reflect.VisibleFields(t) {
			name, options, _ := strings.Cut(field.Tag.Get("json"), ",")
			properties[name] = schemaOf(field.Type)
			if options == "" {
				required = append(required, name)
			}
		}
		return jsonObject{"type": "object", "properties": properties, "required": required}
	case reflect.Slice:
		if t == reflect.TypeFor[json.RawMessage]() {
			return jsonObject{"type": "object"} // as Rollbar sent it
		}
		return jsonObject{"type": "array", "items": schemaOf(t.Elem())}
	case reflect.Pointer:
		return schemaOf(t.Elem())
	case reflect.Map:
		return jsonObject{"type": "object", "additionalProperties": schemaOf(t.Elem())}
	case reflect.Int, reflect.Int64:
		return jsonObject{"type": "integer"}
	case reflect.Float64:
		return jsonObject{"type": "number"}
	case reflect.Bool:
		return jsonObject{"type": "boolean"}
	case reflect.String:
		return jsonObject{"type": "string"}
	}
	panic(fmt.Sprintf("%v is no type for a result", t))
}

// serveOpenAPI answers with the document.
func (s *server) serveOpenAPI(w *response, r *http.Request) {
	w.operation = "openapi"
	document, err := s.document()
	if err = cmp.Or(s.admit(r, false), err); err != nil {
		w.refuse(err)
		return
	}
	w.respond(json.RawMessage(document))
}
