package main

import (
	"cmp"
	_ "embed"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

const openAPIPath = "/openapi.json"

// openAPIFrame is the part of the document that does not depend on the commands.
//
//go:embed openapi.json
var openAPIFrame []byte

// A jsonObject is written with its members sorted by name.
type jsonObject map[string]any

// openAPI returns the OpenAPI 3.1 document of the commands. Their names are its operation ids.
func openAPI(commands []*Command, secured bool) ([]byte, error) {
	paths, schemas := map[string]jsonObject{}, jsonObject{}
	for _, c := range commands {
		for _, route := range c.routes() {
			method, path, _ := strings.Cut(route, " ")
			method = strings.ToLower(method)
			if paths[path] == nil {
				paths[path] = jsonObject{}
			}
			paths[path][method] = c.openAPI(schemas)
			if route == c.Also {
				paths[path][method].(jsonObject)["operationId"] = c.Name + "." + method
			}
		}
	}
	schemaOf(reflect.TypeFor[problem](), schemas) // the frame refers to it
	var document map[string]any
	_ = json.Unmarshal(openAPIFrame, &document) // it is embedded, and valid
	components := document["components"].(map[string]any)
	document["info"].(map[string]any)["version"], document["paths"], components["schemas"] = buildVersion(), paths, schemas
	if !secured {
		document["security"] = []any{}
		delete(components, "securitySchemes")
	}
	return json.MarshalIndent(document, "", "  ")
}

// openAPI describes the command, and adds the schemas that the description refers to.
func (c *Command) openAPI(schemas jsonObject) jsonObject {
	parameters := column(c.paramsIn(inPath, inQuery), func(p *param) jsonObject {
		return jsonObject{
			"name": p.name, "in": string(p.in), "description": p.help, "required": p.in == inPath || p.required, "schema": p.schema(),
		}
	})
	if c.hasETag() {
		parameters = append(parameters, jsonObject{
			"name": "If-None-Match", "in": "header", "description": "the ETag of an earlier response", "schema": jsonObject{"type": "string"},
		})
	}
	operation := jsonObject{
		"operationId": c.Name, "summary": c.Short, "description": cmp.Or(c.Long, c.Short), "tags": []string{c.words()[0]},
		"parameters": parameters, "responses": c.responses(schemas),
	}
	if c.Open {
		operation["security"] = []jsonObject{}
	}
	if len(c.names(inBody)) > 0 {
		operation["requestBody"] = jsonObject{"required": true, "content": content("application/json", c.body(schemas))}
	}
	return operation
}

func reference(schema string) jsonObject { return jsonObject{"$ref": "#/components/schemas/" + schema} }

func content(mediaType string, schema any) jsonObject {
	return jsonObject{mediaType: jsonObject{"schema": schema}}
}

func header(description, kind string) jsonObject {
	return jsonObject{"description": description, "schema": jsonObject{"type": kind}}
}

// hasETag reports whether the command reads a single thing, so that its responses carry an ETag.
func (c *Command) hasETag() bool {
	return c.Run.out == reflect.TypeFor[json.RawMessage]() && strings.HasPrefix(c.Route, http.MethodGet+" ")
}

// body adds the schema of the command's body and refers to it: an object, or a choice of two if one parameter
// excludes the others. Each schema has a name, since generated clients name their types after it.
func (c *Command) body(schemas jsonObject) jsonObject {
	properties, required := c.properties(inBody)
	alone := ""
	for _, p := range c.Run.params {
		if p.unless != "" {
			required, alone = append(required, p.name), p.unless
		}
	}
	schemas[c.Name] = objectOf(properties, required)
	if alone != "" {
		single, others := c.Name+"."+alone, c.Name+"."+required[0]
		schemas[single] = objectOf(jsonObject{alone: properties[alone]}, []string{alone})
		delete(properties, alone)
		schemas[others] = schemas[c.Name]
		schemas[c.Name] = jsonObject{"oneOf": []jsonObject{reference(single), reference(others)}}
	}
	return reference(c.Name)
}

// properties returns the schemas of the parameters in the given places, and the names of the required ones.
func (c *Command) properties(in ...place) (properties jsonObject, required []string) {
	properties, required = jsonObject{}, []string{}
	for _, p := range c.paramsIn(in...) {
		schema := p.schema()
		schema["description"] = p.help
		properties[p.name] = schema
		if p.required {
			required = append(required, p.name)
		}
	}
	return properties, required
}

// objectOf returns the schema of an object with at least one of the properties and no others.
func objectOf(properties jsonObject, required []string) jsonObject {
	return jsonObject{"type": "object", "properties": properties, "required": required, "additionalProperties": false, "minProperties": 1}
}

// schema returns the schema of the parameter's values.
func (p *param) schema() jsonObject {
	schema, least, most := jsonObject{"type": "string"}, "minLength", "maxLength"
	switch p.kind {
	case kindNumber:
		schema, least, most = jsonObject{"type": "integer", "format": "int64"}, "minimum", "maximum"
	case kindBool:
		schema["type"] = "boolean"
	case kindObject:
		schema = jsonObject{"type": "object", "additionalProperties": true}
	}
	if p.min != math.MinInt64 {
		schema[least] = p.min
	}
	if p.max != math.MaxInt64 {
		schema[most] = p.max
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

// responses describes the ways in which the command can end. It does not list ndjson as a media type, since
// generated clients would then have to tell two types of each list apart.
func (c *Command) responses(schemas jsonObject) jsonObject {
	responses := jsonObject{"default": jsonObject{"$ref": "#/components/responses/Failure"}}
	headers, more := jsonObject{}, ""
	if !c.Open {
		headers["Report-Stored"] = header("false if Rollbar's response could not be stored", "string")
	}
	if c.has(inQuery, "source") {
		headers["Report-Source"] = header("archive if the response comes from a report instead of Rollbar", "string")
		headers["Age"] = header("seconds since Rollbar last showed this", "integer")
	}
	if c.hasETag() {
		headers["ETag"] = header("for If-None-Match", "string")
		responses["304"] = jsonObject{"description": "Not Modified: the ETag still matches"}
	}
	var body jsonObject
	switch c.Run.out {
	case reflect.TypeFor[Text]():
		body = content("text/plain", jsonObject{"type": "string"})
	case reflect.TypeFor[*List]():
		headers["Link"] = header("the neighbouring pages, with rel prev and next", "string")
		more = ". With Accept: " + ndjson + ", the response is the elements alone, one per line; with " + csvType + ", the columns of a table."
		body = content("application/json", c.listSchema(schemas))
	case reflect.TypeFor[json.RawMessage]():
		body = content("application/json", schemaOf(reflect.TypeOf(c.Shape), schemas))
	default:
		body = content("application/json", schemaOf(c.Run.out, schemas))
	}
	for _, o := range c.Run.outcomes() {
		responses[strconv.Itoa(o.status)] = jsonObject{"description": http.StatusText(o.status) + more, "headers": headers, "content": body}
	}
	return responses
}

// listSchema returns the schema of the object that holds a list's elements and the position of its page.
func (c *Command) listSchema(schemas jsonObject) jsonObject {
	properties := jsonObject{c.elements(): jsonObject{"type": "array", "items": schemaOf(reflect.TypeOf(c.Shape), schemas)}}
	if c.has(inQuery, "page") {
		properties["page"] = jsonObject{"type": "integer", "format": "int64"}
		properties["total_count"] = jsonObject{"type": []string{"integer", "null"}, "format": "int64"}
	} else {
		properties["next"] = jsonObject{"type": []string{"string", "null"}, "description": "the cursor of the next page"}
	}
	return jsonObject{"type": "object", "properties": properties, "required": slices.Sorted(maps.Keys(properties))}
}

// schemaOf returns the schema of a result type from its JSON tags; nil stands for any object. A struct's schema is
// added under its name, and the result refers to it. It panics for types that no result should have.
func schemaOf(t reflect.Type, schemas jsonObject) jsonObject {
	if t == nil || t == reflect.TypeFor[json.RawMessage]() {
		return jsonObject{"type": "object", "additionalProperties": true, "description": "as Rollbar sent it"}
	}
	switch t.Kind() {
	case reflect.Struct:
		if t == reflect.TypeFor[time.Time]() {
			return jsonObject{"type": "string", "format": "date-time"}
		}
		name := strings.ToUpper(t.Name()[:1]) + t.Name()[1:]
		schemas[name] = structSchema(t, schemas)
		return reference(name)
	case reflect.Slice:
		return jsonObject{"type": "array", "items": schemaOf(t.Elem(), schemas)}
	case reflect.Pointer:
		schema := schemaOf(t.Elem(), schemas)
		schema["type"] = []any{schema["type"], "null"}
		return schema
	case reflect.Map:
		return jsonObject{"type": "object", "additionalProperties": schemaOf(t.Elem(), schemas)}
	case reflect.Int, reflect.Int64:
		return jsonObject{"type": "integer", "format": "int64"}
	case reflect.Bool:
		return jsonObject{"type": "boolean"}
	case reflect.String:
		return jsonObject{"type": "string"}
	}
	panic(fmt.Sprintf("a result cannot have the type %v", t))
}

// structSchema returns the schema of a struct. A field with the JSON tag "-" holds the object's other members.
func structSchema(t reflect.Type, schemas jsonObject) jsonObject {
	properties, required := jsonObject{}, []string{}
	schema := jsonObject{"type": "object", "properties": properties}
	for _, field := range reflect.VisibleFields(t) {
		name, options, _ := strings.Cut(field.Tag.Get("json"), ",")
		switch {
		case name == "-" && field.Type == reflect.TypeFor[json.RawMessage]():
			maps.Copy(schema, schemaOf(field.Type, schemas))
		case name != "-" && field.IsExported():
			property := schemaOf(field.Type, schemas)
			if enum := field.Tag.Get("enum"); enum != "" {
				property["enum"] = strings.Split(enum, ",")
			}
			properties[name] = property
			if options == "" {
				required = append(required, name)
			}
		}
	}
	schema["required"] = required
	return schema
}

func (s *server) serveOpenAPI(w *response, r *http.Request) {
	w.operation = "openapi"
	document, err := s.document()
	w.answer(json.RawMessage(document), cmp.Or(s.admit(r), err))
}
