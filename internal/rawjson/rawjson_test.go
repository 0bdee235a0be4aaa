package rawjson

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

func TestDepth(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int{`7`: 0, `"[[["`: 0, `{}`: 1, `{"a":[{"b":"]"}],"c":[]}`: 3} {
		require.Equal(t, want, Depth(json.RawMessage(text)), text)
	}
	_, err := Compact([]byte(strings.Repeat("[", 20_000) + strings.Repeat("]", 20_000)))
	require.ErrorContains(t, err, "depth")
}

// A text whose parts would take many times its own size is refused.
func TestParseTooMuch(t *testing.T) {
	t.Parallel()
	text := "[[" + strings.Repeat("1,", 2*maxParts) + "1]]"
	whole, err := Parse([]byte(text), 1)
	require.NoError(t, err)
	require.Equal(t, text, string(whole.Value))
	require.Len(t, whole.Parts, 1)
	_, err = Parse([]byte(text), 2)
	require.EqualError(t, err, "it has more than 20000 parts")
}

func TestEqual(t *testing.T) {
	t.Parallel()
	require.True(t, Equal(json.RawMessage(`{"a":1,"b":"\u0041"}`), json.RawMessage(`{"b":"A","a":1}`)))
	require.False(t, Equal(json.RawMessage(`[9007199254740993]`), json.RawMessage(`[9007199254740992]`)))
	large := `"` + strings.Repeat("x", 64<<10) + `"`
	require.True(t, Equal(json.RawMessage(`[`+large+`,1]`), json.RawMessage(`[`+large+`,1]`)))
	require.False(t, Equal(json.RawMessage(`{"a":1,"b":`+large+`}`), json.RawMessage(`{"b":`+large+`,"a":1}`)))
}

// U+FFFD replaces what PostgreSQL cannot store or query, and nothing else changes.
func TestStorable(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		`"a\u0000b"`: `"a\ufffdb"`, `"\udc00a"`: `"\ufffda"`, `"\ud800a"`: `"\ufffda"`,
		`"\ud83d\ude00"`: `"\ud83d\ude00"`,
		"\"\xff\"":       "\"\uFFFD\"", `{"a":"\\u0000\n"}`: `{"a":"\\u0000\n"}`,
	} {
		require.Equal(t, want, string(Storable(json.RawMessage(text))), text)
	}
}

// AppendQuoted agrees with encoding/json.
func TestAppendQuoted(t *testing.T) {
	t.Parallel()
	for r := range rune(0x3000) {
		for _, text := range []string{string(r), "a\n\"" + string(r) + "\\b", "\xff" + string(r)} {
			var want bytes.Buffer
			encoder := json.NewEncoder(&want)
			encoder.SetEscapeHTML(false)
			require.NoError(t, encoder.Encode(text))
			require.Equal(t, want.String(), string(AppendQuoted(nil, text))+"\n", "%q", text)
		}
	}
}

// The parts of JSON, its storable form and its changed form are valid JSON.
func FuzzParts(f *testing.F) {
	f.Add([]byte(`{"err": 0, "result": {"items": [{"id": 7, "title": "a\u0000\ud800"}], "page": 1}}`))
	f.Add([]byte("{\"a\":\"\xff\\\\u0000\",\"a\":[1e3,-0.0,{}],\"\\u0062\":null}"))
	f.Add([]byte(`[[],{},"",[{"x":"\"]}"}]]`))
	f.Add([]byte(`"\ud83d\ude00\ud83d\u0041"`))
	f.Add([]byte(`"\udc00a"`))
	f.Add([]byte(`[2` + strings.Repeat("0", 310) + `]`))
	f.Add([]byte(`<html>`))
	f.Fuzz(func(t *testing.T, text []byte) {
		answer, err := Compact(bytes.Clone(text))
		if err != nil {
			return
		}
		value, _ := measure(answer)
		require.Equal(t, answer, value)
		whole, err := Parse(bytes.Clone(text), 2)
		require.NoError(t, err)
		require.Equal(t, answer, whole.Value)
		requireParts(t, whole, 2)
		for _, value := range Members(answer) {
			require.True(t, json.Valid(value))
		}
		for _, value := range Elements(answer) {
			require.True(t, json.Valid(value))
		}
		stored := Storable(answer)
		require.True(t, json.Valid(stored))
		require.True(t, utf8.Valid(stored))
		require.Equal(t, stored, Storable(stored))
		var decoded any
		decoder := json.NewDecoder(bytes.NewReader(stored))
		decoder.UseNumber() // some numbers do not fit into a float64
		require.NoError(t, decoder.Decode(&decoded))
		require.NotContains(t, string(mustMarshal(t, decoded)), `\u0000`, "decoded: %q", stored)
		if answer[0] != '{' {
			return
		}
		changed := Set(stored, "\"new\n", json.RawMessage("1"))
		require.True(t, json.Valid(changed))
		require.Equal(t, "1", string(Get(changed, "\"new\n")))
		require.Equal(t, []json.RawMessage{nil, Get(changed, "\"new\n"), nil},
			Pick(changed, "no such", "\"new\n", "nor this"))
		require.True(t, json.Valid(Set(changed, "\"new\n", nil)))
	})
}

// requireParts checks that a value was taken apart to the given depth.
func requireParts(t *testing.T, whole Part, levels int) {
	var want []Part
	for name, value := range RawMembers(whole.Value) {
		want = append(want, Part{Name: name, Value: value})
	}
	for _, value := range Elements(whole.Value) {
		want = append(want, Part{Value: value})
	}
	if levels == 0 {
		want = nil
	}
	require.Len(t, whole.Parts, len(want))
	for i, part := range whole.Parts {
		require.Equal(t, string(want[i].Name), string(part.Name))
		require.Equal(t, string(want[i].Value), string(part.Value))
		if len(part.Name) > 0 {
			require.Equal(t, Get(whole.Value, string(nameOf(part.Name))), whole.Member(string(nameOf(part.Name))).Value)
		}
		requireParts(t, part, levels-1)
	}
}

func mustMarshal(t *testing.T, value any) []byte {
	var text bytes.Buffer
	require.NoError(t, json.NewEncoder(&text).Encode(value))
	return bytes.ReplaceAll(text.Bytes(), []byte(`\\`), nil)
}

// Compact accepts exactly what encoding/json accepts, with the same result.
func FuzzCompact(f *testing.F) {
	for _, seed := range []string{
		``, ` `, `null`, ` {"a" : [1, -0.5e+3 , "x\u00e9\n", true,false,null ] , "b":{}} `, `[]`, `[ ]`, `{}x`, `[1,]`,
		`{"a":1,}`,
		`01`, `-`, `1.`, `1e`, `.5`, `+1`, `"\x"`, `"\u12G4"`, "\"\x01\"", "\"\xff\"", `"`, `"\`, `"\u12`, `nul`,
		`nullx`, `{"a"}`, `{1:2}`, `[1 2]`, `1 2`, ` {"a" :1 2}`,
		strings.Repeat("[", 10_000) + strings.Repeat("]", 10_000),
		strings.Repeat("[", 10_001) + strings.Repeat("]", 10_001),
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var want bytes.Buffer
		wantErr := json.Compact(&want, text)
		got, err := Compact(bytes.Clone(text))
		require.Equal(t, wantErr == nil, err == nil, "%q: %v, %v", text, wantErr, err)
		if err == nil {
			require.Equal(t, want.String(), string(got))
		} else {
			require.EqualError(t, err, json.Unmarshal(bytes.TrimRight(text, " \n\r\t"), new(any)).Error(), "%q", text)
		}
	})
}

// Many escaped quotes cost little more than other text, and do not hide the end of a string.
func TestManyEscapedQuotes(t *testing.T) {
	t.Parallel()
	for _, part := range []string{`\"`, `x\"`, `\\\"`, `\\`, `\"` + strings.Repeat("x", 31),
		strings.Repeat("x", 31) + `\"`} {
		for n := range 70 {
			value := `"` + strings.Repeat(`\"`, n%2) + strings.Repeat("y", n/2) + strings.Repeat(part, n) + `"`
			require.Equal(t, value, string(Get(json.RawMessage(`{"a":`+value+`,"b":1}`), "a")))
		}
	}
	fastest, valid := time.Hour, time.Hour
	object := json.RawMessage(`{"a":"` + strings.Repeat(`\"`, 1_000_000) + `","b":1}`)
	for range 10 {
		began := time.Now()
		require.Equal(t, "1", string(Get(object, "b")))
		fastest = min(fastest, time.Since(began))
		began = time.Now()
		require.True(t, json.Valid(object))
		valid = min(valid, time.Since(began))
	}
	require.Less(t, fastest, 2*valid, "one pass over the text costs less than encoding/json's")
}

func TestCut(t *testing.T) {
	t.Parallel()
	require.Equal(t, "short", Cut("short", 10))
	require.Equal(t, "short enough", Cut("short enough", 12))
	require.Equal(t, "too lon…", Cut("too long", 7))
	for _, text := range []string{"\x1b", "\u2028", "é", "<", "\"", "\xff", "x", "😀"} {
		got, err := json.Marshal(Cut(strings.Repeat(text, 1000), 300))
		require.NoError(t, err)
		require.LessOrEqual(t, len(got), 300+len(`"…"`))
		require.Greater(t, len(got), 80)
	}
}

// BenchmarkParts measures what the service does with a page of items: check it, take it apart, change the items.
func BenchmarkParts(b *testing.B) {
	item := `{"id": 1705000007, "title": "TypeError: \"x\" of\n undefined 🔥", "assigned_user_id": null, "data": [` +
		`{"a": {"b": -1.5e3}}], "hash": "0beec7b5ea3f0fdbc95d0dd47f3c5bc275da8a33", "level": "error"}`
	page := []byte("[" + strings.Repeat(item+",\n  ", 99) + item + "]")
	compact, err := Compact(bytes.Clone(page))
	require.NoError(b, err)
	for name, work := range map[string]func(){
		"Compact":      func() { _, _ = Compact(bytes.Clone(page)) },
		"CompactAgain": func() { _, _ = Compact(compact) },
		"Get":          func() { forEach(compact, func(item json.RawMessage) { Get(item, "hash") }) },
		"Set":          func() { forEach(compact, func(item json.RawMessage) { Set(item, "level", item[:0]) }) },
		"AppendQuoted": func() { AppendQuoted(nil, item) },
		"Purge":        func() { Purge(compact, "id") },
		"Depth":        func() { Depth(compact) },
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(compact)))
			for b.Loop() {
				work()
			}
		})
	}
}

func forEach(page []byte, f func(json.RawMessage)) {
	for _, item := range Elements(page) {
		f(item)
	}
}
