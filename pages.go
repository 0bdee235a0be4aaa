package main

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"embed"
	"encoding/json"
	"fmt"
	"html"
	"html/template"
	"io"
	"mime"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
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
	server  *server
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
	Search              *form // of a command that reads
	Folded              []form
	Form                *form // of a question, or of a request that failed
	Text                Text
	List                *List
	Members             []member
	Item                *itemView
	Occurrence, Summary *thingView
}

type link struct{ Text, URL string }

// A member is a named value as a page shows it.
type member struct {
	name, baseURL string // baseURL is the URL prefix of the things that the value may name, or ""
	Label, Text   string
	URL           string // of the thing that it names, or ""
	At            string // RFC 3339, for a time
	isTag, IsTag  bool   // isTag: unless it is null; IsTag: shown in colour
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

func (f field) IsGiven(option string) bool { return slices.Contains(f.Values, option) }

func (s *server) newPage(w *response, r *http.Request) *page {
	r.URL.RawQuery = withoutEmpty(r.URL.RawQuery)
	root := cmp.Or(strings.Repeat("../", max(0, strings.Count(r.URL.EscapedPath(), "/")-1)), "./")
	usable := allowed(s.commands, !s.mayChange(r))
	if s.admit(r) != nil {
		usable = slices.DeleteFunc(usable, func(c *Command) bool { return !c.Open })
	}
	return &page{server: s, w: w, usable: usable, Root: root, Style: root + stylePath[1:], Header: w.Header()}
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
	if kind != formType || r.Method != http.MethodPost {
		return nil
	}
	_, pattern := s.mux.Handler(r)
	if _, path, _ := strings.Cut(pattern, " "); pattern != noRoute && !slices.Contains(s.paths, path) {
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
		p.show(result)
		p.render()
	case len(p.command.names(inPath)) == 0 && slices.Contains([]outcome{created, accepted}, outcomeOf(result)):
		p.redirect("/reports")
	default:
		p.redirect(p.back())
	}
}

// fail renders the page of a failure, with the form that led to it.
func (p *page) fail(f *Failure) {
	failed := page{server: p.server, w: p.w, command: p.command, usable: p.usable, Root: p.Root, Style: p.Style, Header: p.Header}
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
	var err error
	if p.List == nil {
		p.execute(p.w)
	} else {
		err = p.writeList()
	}
	if p.w.writeErr != nil {
		p.w.interrupt()
	} else if err != nil {
		p.w.refuse(err)
	}
}

// A frame is what surrounds the rows on the page of a list.
type frame struct{ before, after []byte }

// frame returns the frame of a list. Since running a template is slow, frames without notes are kept by all that they
// depend on; the number of usable commands tells which they are.
func (p *page) frame() frame {
	isUsual := len(p.command.names(inPath)) == 0 && p.Header.Get("Report-Stored")+p.Header.Get("Age") == ""
	key, s := [4]any{p.command, p.Root, len(p.usable), p.given.Encode()}, p.server
	if kept, isKept := s.frames.Load(key); isKept && isUsual {
		return kept.(frame)
	}
	var text bytes.Buffer
	p.execute(&text)
	before, after, _ := bytes.Cut(text.Bytes(), []byte("<table>"))
	f := frame{before, after}
	if isUsual && text.Len() < 16<<10 {
		if s.framesMade.Add(1)%500 == 0 {
			s.frames.Clear()
		}
		s.frames.Store(key, f)
	}
	return f
}

// execute writes the page, but of a list only the frame, with <table> in the place of the rows.
func (p *page) execute(w io.Writer) {
	p.navigate()
	if p.Failure == nil && p.Question == "" {
		p.offer()
	}
	if err := pageTemplates().ExecuteTemplate(w, "page", p); err != nil && p.w.writeErr == nil {
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
	var nav, others []byte
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
		*html = texts(*html, `<a href="`, p.URL(path), `"`, current, ">", name, "</a>\n")
	}
	p.Nav = template.HTML(append(nav, others...))
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

// show shows the result of a command that reads.
func (p *page) show(result any) {
	switch value := result.(type) {
	case Text:
		p.Text = value
	case *List:
		setLinks(p.w.Header(), p.w.request.URL, value)
		p.List = value
	default:
		p.showThing(value)
	}
}

// offer makes the form of the command, and those of the other commands that belong to its route.
func (p *page) offer() {
	for _, c := range p.usable {
		method, path, _ := strings.Cut(c.Route, " ")
		switch {
		case c == p.command && len(c.names(inQuery)) > 0:
			p.Search = new(p.form(c, p.given))
		case c == p.command || p.owner(c) != p.command:
		case method != http.MethodGet:
			p.Folded = append(p.Folded, p.form(c, nil))
		case len(c.names(inPath)) > 0 && len(c.names(inPath)) == len(p.command.names(inPath)):
			p.Links = append(p.Links, link{path[strings.LastIndexByte(path, '/')+1:], p.URL(p.fill(path))})
		}
	}
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

// writeList writes the page of a list. A template for the rows would be far slower.
func (p *page) writeList() error {
	surrounding := p.frame()
	_, _ = p.w.Write(surrounding.before)
	columns, noun := strings.Fields(p.command.Columns), p.command.elements()
	read, cells := columnValues(columns), column(columns, func(name string) member { return p.Member(noun, name) })
	html := texts(nil, "<table>\n<thead><tr><th scope=\"col\">", strings.Join(column(columns, words), `</th><th scope="col">`),
		"</th></tr></thead>\n<tbody>\n") // from the command, so nothing to escape
	end := "<p>There is nothing here.</p>\n"
	for row, err := range p.List.Rows {
		if err != nil {
			return err
		}
		html = append(html, "<tr>"...)
		first := ""
		for i, value := range read(row) {
			cell := &cells[i]
			cell.set(value)
			cell.Text = shorten(cell.Text, 300)
			if first = cmp.Or(first, cell.URL); i == len(columns)-1 {
				cell.URL = cmp.Or(cell.URL, first)
			}
			html = texts(html, `<td data-name="`, cell.Label, `">`)
			html = append(cell.append(html), "</td>"...)
		}
		if _, err := p.w.Write(append(html, "</tr>\n"...)); err != nil {
			return err
		}
		html, end = html[:0], "</tbody>\n</table>\n"
	}
	_, err := p.w.Write(slices.Concat([]byte(end), p.neighbours(), surrounding.after))
	return err
}

// neighbours returns the links to the neighbouring pages of a list, and its members other than the rows, as HTML.
func (p *page) neighbours() (links []byte) {
	link := func(rel, url, text string) {
		if url != "" {
			links = texts(links, `<a rel="`, rel, `" href="`, html.EscapeString(url), `">`, text, "</a>\n")
		}
	}
	link("prev", neighbour(p.w.request.URL, p.List.Prev), "← previous page")
	for name, value := range rawjson.Members(p.List.Rest) {
		if name != "next" && !rawjson.IsNull(value) {
			m := p.Member("", name).Of(value)
			links = texts(links, `<span class="faint">`, m.Label, " ", html.EscapeString(m.Text), "</span>\n")
		}
	}
	link("next", neighbour(p.w.request.URL, p.List.Next), "next page →")
	if len(links) > 0 {
		links = texts(nil, `<nav class="pages" aria-label="Pages">`, "\n", string(links), "</nav>\n")
	}
	return links
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
	m := member{name: name, Label: words(name), isTag: slices.Contains([]string{"level", "status", "state"}, name)}
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
	m.set(value)
	return m
}

func (m *member) set(value json.RawMessage) {
	m.Text, m.URL, m.At, m.IsLong = textOrDash(value), "", "", false
	m.IsTag = m.isTag && !rawjson.IsNull(value)
	switch at, isTime := timeOf(m.name, value); {
	case isTime:
		m.At, m.Text = at.UTC().Format(time.RFC3339), ago(time.Since(at))
	case m.baseURL != "" && strings.Trim(m.Text, "0123456789") == "":
		m.URL = m.baseURL + m.Text
	case !rawjson.IsNull(value) && (value[0] == '{' || value[0] == '['):
		m.Text, m.IsLong = indented(value), len(value) > 100
	}
}

func (m member) HTML() template.HTML { return template.HTML(m.append(nil)) }

// append appends the member's value as HTML. A template would be far slower, and a table has many values.
func (m member) append(to []byte) []byte {
	text := html.EscapeString(m.Text)
	switch {
	case m.At != "":
		return texts(to, `<time datetime="`, m.At, `" title="`, m.At, `">`, text, "</time>")
	case m.URL != "":
		return texts(to, `<a href="`, html.EscapeString(m.URL), `">`, text, "</a>")
	case m.IsLong:
		return fmt.Appendf(to, "<details><summary>%d characters</summary><pre>%s</pre></details>", len(m.Text), text)
	case m.IsTag:
		return texts(to, `<span class="tag" data-is="`, text, `">`, text, "</span>")
	}
	return texts(to, "<bdi>", text, "</bdi>")
}

// texts appends several texts.
func texts(to []byte, texts ...string) []byte {
	for _, text := range texts {
		to = append(to, text...)
	}
	return to
}

// ago puts an age into words: "3h ago".
func ago(age time.Duration) string {
	switch {
	case age < time.Minute:
		return "just now"
	case age < time.Hour:
		return strconv.Itoa(int(age.Minutes())) + "m ago"
	case age < 48*time.Hour:
		return strconv.Itoa(int(age.Hours())) + "h ago"
	}
	return strconv.Itoa(int(age.Hours()/24)) + "d ago"
}

// words returns the label of a column or a parameter.
func words(name string) string { return strings.ReplaceAll(lastName(name), "_", " ") }
