package main

import (
	"cmp"
	"crypto/sha256"
	"embed"
	"encoding/json"
	"fmt"
	"html"
	"html/template"
	"mime"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"app/internal/rawjson"
)

//go:embed pages
var pageFiles embed.FS

// pageTemplates are parsed on first use, since most subcommands never need them.
var pageTemplates = sync.OnceValue(func() *template.Template {
	return template.Must(template.New("").Funcs(templateFuncs).ParseFS(pageFiles, "pages/*.html"))
})

var (
	styleSheet, _ = pageFiles.ReadFile("pages/style.css")
	stylePath     = fmt.Sprintf("/style-%.4x.css", sha256.Sum256(styleSheet)) // changes with the style sheet
)

// pagePolicy lets a page load its style sheet, show an icon, and submit forms to this service.
const pagePolicy = "default-src 'none'; style-src 'self'; img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"

// Form fields that are not parameters: methodField holds the intended method if it is not POST, and confirmField
// says that the question was answered.
const methodField, confirmField = "_method", "_confirm"

// A confirmation asks a question before a form is carried out: about holds the thing concerned, args the form's values.
type confirmation struct {
	about any
	args  arguments
}

// A page is a response to a caller who prefers pages. The template "page" shows its exported fields, among them the
// other operations on its route. Titles and stack traces may be hostile, so all text is escaped.
type page struct {
	app     *App
	w       *response
	command *Command   // nil where no route matches
	usable  []*Command // by the caller
	given   url.Values // of the command's parameters
	id      string     // of the thing that is shown, or ""

	Root, Style         string // Root is the relative URL of the service's root, valid behind any prefix
	Heading, Title      string
	Nav                 template.HTML // the links to the operations that read without an id
	Trail, Links        []link
	Header              http.Header // of the response
	Failure             *problem
	Question            string
	Search, Folded      template.HTML // the forms of a command that reads, and of other commands
	Form                *form         // of a question, or of a request that failed
	Text                Text
	Table               *table
	Members             []member
	Item                *itemView
	Occurrence, Summary *thingView
}

type link struct{ Text, URL string }

type table struct {
	Head, Rows template.HTML
	Rest       []member // the list's other members
	Prev, Next string
}

// A member is a named value as a page shows it.
type member struct {
	name, baseURL string // baseURL is the URL prefix of the things that the value may name, or ""
	Label, Text   string
	URL           string // of the thing that it names, or ""
	At            string // RFC 3339, for a time
	IsTag         bool   // shown in colour
	IsLong        bool   // shown folded
}

// A form runs an operation.
type form struct {
	Command                *Command
	Action, Method, Back   string  // Method is one that browsers' forms cannot send, or ""
	Fields, Paging         []field // Paging says which part of a list is shown
	IsRead, IsConfirmation bool
}

type field struct {
	Name, Label, Help, Default, Kind string
	Options, Values                  []string
	IsRepeated, IsRequired           bool
}

// keptForms holds forms by all that they depend on, since running a template is slow. Every 500th form empties it.
var (
	keptForms sync.Map
	formsKept atomic.Int64
)

// formHTML returns the form of a command, filled with the given values, as the named template shows it.
func (p *page) formHTML(name string, c *Command, given url.Values) template.HTML {
	key := [4]any{name, c, p.Root, given.Encode()}
	if kept, isKept := keptForms.Load(key); isKept {
		return kept.(template.HTML)
	}
	var text strings.Builder
	if err := pageTemplates().ExecuteTemplate(&text, name, p.form(c, given)); err != nil {
		panic(err) // a mistake in a template
	}
	if len(c.names(inPath)) == 0 && text.Len() < 8<<10 {
		if formsKept.Add(1)%500 == 0 {
			keptForms.Clear()
		}
		keptForms.Store(key, template.HTML(text.String()))
	}
	return template.HTML(text.String())
}

func (f field) IsGiven(option string) bool { return slices.Contains(f.Values, option) }

func (s *server) newPage(w *response, r *http.Request) *page {
	r.URL.RawQuery = withoutEmpty(r.URL.RawQuery)
	root := cmp.Or(strings.Repeat("../", max(0, strings.Count(r.URL.EscapedPath(), "/")-1)), "./")
	usable := allowed(s.commands, !s.mayChange(r))
	if s.admit(r) != nil {
		usable = slices.DeleteFunc(usable, func(c *Command) bool { return !c.Open })
	}
	return &page{app: s.app, w: w, usable: usable, Root: root, Style: root + stylePath[1:], Header: w.Header()}
}

// withoutEmpty returns a query or a form without its empty fields.
func withoutEmpty(query string) string {
	return strings.Join(slices.DeleteFunc(strings.Split(query, "&"), func(field string) bool {
		_, value, _ := strings.Cut(field, "=")
		return value == ""
	}), "&")
}

// takeForm turns a form into the request that it stands for, unless it is for an SDK's or an agent's route.
func (s *server) takeForm(w *response, r *http.Request) error {
	kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	_, pattern := s.mux.Handler(r)
	_, path, _ := strings.Cut(pattern, " ")
	if kind != formType || r.Method != http.MethodPost || pattern != noRoute && !slices.Contains(s.paths, path) {
		return nil
	}
	if err := s.admit(r); err != nil {
		return err
	}
	text, err := s.bodyText(w, r)
	if err != nil {
		return err
	}
	w.form, err = url.ParseQuery(withoutEmpty(string(text)))
	if err != nil {
		return fail(invalid, "the form cannot be read: %w", err)
	}
	switch method := w.form.Get(methodField); method {
	case "":
	case http.MethodPut, http.MethodPatch, http.MethodDelete:
		r.Method = method
	default:
		return invalidField(methodField, "must be PUT, PATCH or DELETE")
	}
	delete(w.form, methodField)
	return nil
}

// serveStyle sends the style sheet. It needs no token.
func serveStyle(w *response, _ *http.Request) {
	w.Header().Set("Content-Type", "text/css; charset=utf-8")
	w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write(styleSheet)
}

// respond renders the page of a result. A form redirects to the page that shows its effect.
func (p *page) respond(result any) {
	p.w.note()
	p.w.WriteHeader(outcomeOf(result).status)
	switch asked, isQuestion := result.(confirmation); {
	case isQuestion:
		about, _ := asked.about.(json.RawMessage)
		p.Question, p.Form = p.command.ask(about, asked.args), new(p.form(p.command, p.given))
		p.Form.IsConfirmation, p.Form.Back = true, p.URL(p.back())
		p.render()
	case p.w.form == nil:
		if err := p.show(result); err != nil {
			p.w.refuse(err)
			return
		}
		p.render()
	case len(p.command.names(inPath)) == 0 && slices.Contains([]outcome{created, accepted}, outcomeOf(result)):
		p.redirect("/reports")
	default:
		p.redirect(p.back())
	}
}

// fail renders the page of a failure, with the form that led to it.
func (p *page) fail(f *Failure) {
	failed := page{app: p.app, w: p.w, command: p.command, usable: p.usable, Root: p.Root, Style: p.Style, Header: p.Header}
	failed.Failure, failed.Title = new(f.problem(p.w.id)), f.kind.title
	failed.Failure.Detail = p.detail(f)
	if slices.Contains(p.usable, p.command) {
		given := p.given
		if len(template.HTMLEscapeString(fmt.Sprint(given))) > 8<<10 { // of the 16 kB that a failure may have
			given = nil
		}
		failed.Form = new(p.form(p.command, given))
	}
	failed.render()
}

// detail returns an error's detail with secrets masked.
func (p *page) detail(err error) string { return string(p.w.mask.Bytes([]byte(failureOf(err).detail))) }

func (p *page) render() {
	p.w.note()
	p.Header["Content-Type"] = []string{"text/html; charset=utf-8"}
	p.Header["Content-Security-Policy"] = []string{pagePolicy}
	p.Header["Referrer-Policy"] = []string{"no-referrer"}
	p.navigate()
	switch err := pageTemplates().ExecuteTemplate(p.w, "page", p); {
	case p.w.writeErr != nil:
		p.w.interrupt()
	case err != nil:
		panic(err) // a mistake in a template
	}
}

// redirect sends the browser to another page.
func (p *page) redirect(path string) {
	p.w.Header().Set("Location", p.URL(path))
	p.w.WriteHeader(http.StatusSeeOther)
}

// back returns the path of the page that offers the command.
func (p *page) back() string {
	path := p.fill(strings.TrimPrefix(p.owner(p.command).Route, "GET "))
	if by := p.given.Get("by"); by != "" {
		path += "?" + url.Values{"by": {by}}.Encode()
	}
	return path
}

// URL returns the path, which begins with a slash, as a relative URL.
func (p *page) URL(path string) string { return p.Root + path[1:] }

// fill returns a route's path with its fields filled from this request, or from the thing that is shown.
func (p *page) fill(path string) string {
	return pathField.ReplaceAllStringFunc(path, func(name string) string {
		if name == "{id}" && p.id != "" {
			return p.id
		}
		return url.PathEscape(p.w.request.PathValue(strings.Trim(name, "{}")))
	})
}

// find returns the command with the route, or nil if the caller may not use it or there is none.
func (p *page) find(route string) *Command {
	if i := slices.IndexFunc(p.usable, func(c *Command) bool { return c.Route == route }); i >= 0 {
		return p.usable[i]
	}
	return nil
}

// owner returns the command whose page offers c: the one that reads c's path, or else the longest prefix of it.
// Without such a page, a change is offered on the first page, and a read nowhere.
func (p *page) owner(c *Command) *Command {
	method, path, _ := strings.Cut(c.Route, " ")
	for ; path != ""; path = path[:strings.LastIndexByte(path, '/')] {
		if reader := p.find("GET " + path); reader != nil && reader != c {
			return reader
		}
	}
	if method == http.MethodGet {
		return nil
	}
	return p.usable[slices.IndexFunc(p.usable, func(c *Command) bool { return strings.HasPrefix(c.Route, "GET ") })]
}

// navigate makes the links to the operations that read without an id, and to the pages above this one.
func (p *page) navigate() {
	var nav, others strings.Builder
	for _, c := range p.usable {
		method, path, _ := strings.Cut(c.Route, " ")
		if method != http.MethodGet || len(c.names(inPath)) > 0 {
			continue
		}
		html, current := &nav, ""
		if len(c.words()) == 1 {
			html = &others
		}
		if c == p.command {
			current = ` aria-current="page"`
		}
		name := strings.TrimSuffix(strings.Join(c.words(), " "), " list")
		writeTexts(html, `<a href="`, p.URL(path), `"`, current, ">", name, "</a>\n")
	}
	p.Nav = template.HTML(nav.String() + others.String())
	if p.command == nil {
		return
	}
	_, path, _ := strings.Cut(p.command.Route, " ")
	at := ""
	for segment := range strings.SplitSeq(path[1:], "/") {
		at += "/" + segment
		if name, _ := url.PathUnescape(p.fill(segment)); at == path || p.find("GET "+at) != nil {
			p.Heading, p.Title = name, strings.TrimSpace(name+" "+p.Title)
			if at != path {
				p.Trail = append(p.Trail, link{name, p.URL(p.fill(at))})
			}
		}
	}
}

// show shows the result of a command that reads, and the other commands that belong to its route.
func (p *page) show(result any) (err error) {
	switch value := result.(type) {
	case Text:
		p.Text = value
	case *List:
		setLinks(p.w.Header(), p.w.request.URL, value)
		err = p.showList(value)
	default:
		p.showThing(value)
	}
	for _, c := range p.usable {
		method, path, _ := strings.Cut(c.Route, " ")
		switch {
		case c == p.command && len(c.names(inQuery)) > 0:
			p.Search = p.formHTML("form", c, p.given)
		case c == p.command || p.owner(c) != p.command:
		case method != http.MethodGet:
			p.Folded += p.formHTML("folded", c, nil)
		case len(c.names(inPath)) > 0 && len(c.names(inPath)) == len(p.command.names(inPath)):
			p.Links = append(p.Links, link{path[strings.LastIndexByte(path, '/')+1:], p.URL(p.fill(path))})
		}
	}
	return err
}

// form returns the form of a command, filled with the given values.
func (p *page) form(c *Command, given url.Values) form {
	method, path, _ := strings.Cut(c.Route, " ")
	f := form{Command: c, Action: p.URL(p.fill(path)), IsRead: method == http.MethodGet}
	if !f.IsRead && method != http.MethodPost {
		f.Method = method
	}
	for _, param := range c.paramsIn(inQuery, inBody) {
		if c != p.command && len(p.command.names(inPath)) > 0 && p.command.has(inQuery, param.name) {
			continue // the page of a thing knows it
		}
		fields := &f.Fields
		if slices.Contains([]string{"page", "limit", "cursor"}, param.name) {
			fields = &f.Paging
		}
		*fields = append(*fields, field{
			Name: param.name, Label: words(param.name), Help: param.help, Default: param.value, Kind: string(param.kind),
			Options: param.enum, Values: given[param.name], IsRepeated: param.repeated, IsRequired: param.required && param.unless == "",
		})
	}
	return f
}

// showList reads a list, and keeps only what the table shows.
func (p *page) showList(list *List) error {
	columns, noun := strings.Fields(p.command.Columns), p.command.elements()
	p.Table = &table{Prev: neighbour(p.w.request.URL, list.Prev), Next: neighbour(p.w.request.URL, list.Next)}
	var rows strings.Builder
	rows.Grow(16 << 10)
	read, cells := columnValues(columns), column(columns, func(name string) member { return p.Member(noun, name) })
	for row, err := range list.Rows {
		if err != nil {
			return err
		}
		rows.WriteString("<tr>")
		first := ""
		for i, value := range read(row) {
			cell := cells[i].Of(value)
			cell.Text = shorten(cell.Text, 300)
			if first = cmp.Or(first, cell.URL); i == len(columns)-1 {
				cell.URL = cmp.Or(cell.URL, first)
			}
			writeTexts(&rows, `<td data-name="`, cell.Label, `">`) // from the command, so nothing to escape
			cell.write(&rows)
			rows.WriteString("</td>")
		}
		rows.WriteString("</tr>\n")
	}
	p.Table.Head = template.HTML(`<th scope="col">` + strings.Join(column(columns, words), `</th><th scope="col">`) + "</th>")
	p.Table.Rows = template.HTML(rows.String())
	for name, value := range rawjson.Members(list.Rest) {
		if name != "next" && !rawjson.IsNull(value) {
			p.Table.Rest = append(p.Table.Rest, p.Member("", name).Of(value))
		}
	}
	return nil
}

// showThing shows a single thing.
func (p *page) showThing(value any) {
	thing := asJSON(value)
	if _, isNumber := rawjson.Int(rawjson.Get(thing, "id")); isNumber {
		p.id = string(rawjson.Get(thing, "id"))
	}
	for name, value := range rawjson.Members(thing) {
		p.Members = append(p.Members, p.Member(p.command.words()[0], name).Of(value))
	}
	switch {
	case reflect.TypeOf(p.command.Shape) == reflect.TypeFor[Item]():
		p.Item = p.item(thing)
	case p.command.Run.out == reflect.TypeFor[Summary]():
		p.Summary = &thingView{p, thing}
	case get(thing, "data.body") != nil:
		p.Occurrence = &thingView{p, thing}
	}
}

// Member returns the member with the name, still without a value, of things of the noun ("items"). Of a path such as
// data.level only the end counts. A name that ends with _id, such as last_occurrence_id, refers to another noun.
func (p *page) Member(noun, name string) member {
	name = lastName(name)
	m := member{name: name, Label: words(name), IsTag: slices.Contains([]string{"level", "status", "state"}, name)}
	of, isID := strings.CutSuffix("_"+name, "_id")
	if isID && of != "" {
		noun = of[strings.LastIndexByte(of, '_')+1:] + "s"
	}
	if isID && p.find("GET /"+noun+"/{id}") != nil {
		m.baseURL = p.URL("/" + noun + "/")
	}
	return m
}

// Of returns the member with a value.
func (m member) Of(value json.RawMessage) member {
	m.Text = textOrDash(value)
	switch at, isTime := timeOf(m.name, value); {
	case isTime:
		m.At, m.Text = at.UTC().Format(time.RFC3339), ago(time.Since(at))
	case m.baseURL != "" && strings.Trim(m.Text, "0123456789") == "":
		m.URL = m.baseURL + m.Text
	case !rawjson.IsNull(value) && (value[0] == '{' || value[0] == '['):
		m.Text, m.IsLong = indented(value), len(value) > 100
	}
	m.IsTag = m.IsTag && !rawjson.IsNull(value)
	return m
}

// HTML returns the member's value as HTML.
func (m member) HTML() template.HTML {
	var html strings.Builder
	m.write(&html)
	return template.HTML(html.String())
}

// write writes the member's value as HTML. A template would be far slower, and a table has many values.
func (m member) write(to *strings.Builder) {
	text := html.EscapeString(m.Text)
	switch {
	case m.At != "":
		writeTexts(to, `<time datetime="`, m.At, `" title="`, m.At, `">`, text, "</time>")
	case m.URL != "":
		writeTexts(to, `<a href="`, html.EscapeString(m.URL), `">`, text, "</a>")
	case m.IsLong:
		fmt.Fprintf(to, "<details><summary>%d characters</summary><pre>%s</pre></details>", len(m.Text), text)
	case m.IsTag:
		writeTexts(to, `<span class="tag" data-is="`, text, `">`, text, "</span>")
	default:
		writeTexts(to, "<bdi>", text, "</bdi>")
	}
}

func writeTexts(html *strings.Builder, texts ...string) {
	for _, text := range texts {
		html.WriteString(text)
	}
}

// ago puts an age into words: "3h ago".
func ago(age time.Duration) string {
	switch {
	case age < time.Minute:
		return "just now"
	case age < time.Hour:
		return fmt.Sprintf("%dm ago", age/time.Minute)
	case age < 48*time.Hour:
		return fmt.Sprintf("%dh ago", age/time.Hour)
	}
	return fmt.Sprintf("%dd ago", age/(24*time.Hour))
}

// words returns the label of a column or a parameter.
func words(name string) string { return strings.ReplaceAll(lastName(name), "_", " ") }
