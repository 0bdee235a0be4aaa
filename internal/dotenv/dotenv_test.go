package dotenv

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// parse returns what Parse sets, as NAME=value.
func parse(text string) (got []string, err error) {
	err = Parse(strings.NewReader(text), func(name, value string) error {
		got = append(got, name+"="+value)
		return nil
	})
	return got, err
}

func TestParse(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, text string
		want       []string
	}{
		{"empty file", "", nil},
		{"plain", "A=b\nC=d", []string{"A=b", "C=d"}},
		{"empty values", "A=\nB=''\nC=\"\"\nD= \t\nE='' # x", nil},
		{"blank lines, comments, white space", "\n # x\n\t\n \t A = b \t\n", []string{"A=b"}},
		{"byte order mark and Windows line ends", "\uFEFFA=b\r\n\r\nC='d\r\ne'\r\n", []string{"A=b", "C=d\ne"}},
		{"export", "export A=b\n export\tC=d\nexport=e\nexported=f", []string{"A=b", "C=d", "export=e", "exported=f"}},
		{"names", "_a.b-C1=d", []string{"_a.b-C1=d"}},
		{"comments after values", "A=b # c\nB=b#c\nC='d' # e\nD=\"e#f\"\t#g\nE=e\t# f",
			[]string{"A=b", "B=b#c", "C=d", "D=e#f", "E=e"}},
		{"quotes inside a value", `A=it's "fine"`, []string{`A=it's "fine"`}},
		{"backslashes without quotes", `A=C:\new\`, []string{`A=C:\new\`}},
		{"single quotes are literal", `A='$X \n ${Y} " # \\'`, []string{`A=$X \n ${Y} " # \\`}},
		{"escapes", `A="a\tb\"c\\d\\n\r\n"`, []string{"A=a\tb\"c\\d\\n\r\n"}},
		{"white space in quotes", `A=' b '`, []string{"A= b "}},
		{"several lines", "A='b\n\n# c'\nD=\"e\nF=f\"\nG=h", []string{"A=b\n\n# c", "D=e\nF=f", "G=h"}},
		{"equals sign in a value", "A=postgres://u@h/d?x=y", []string{"A=postgres://u@h/d?x=y"}},
		{"dollar signs in comments", "# $X\nA=b # $X\nC=\"d\" # ${X}", []string{"A=b", "C=d"}},
		{"later lines win", "A=1\nB=2\nC=3\nA=4\nB=\n", []string{"C=3", "A=4"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got, err := parse(test.text)
			require.NoError(t, err)
			assert.Equal(t, test.want, got)
		})
	}
}

func TestParseErrors(t *testing.T) {
	t.Parallel()
	const (
		form   = "must be NAME=value, a comment or blank"
		dollar = "a $ begins a variable for Docker Compose: write the value in single quotes"
		escape = `a \ in double quotes must begin \n, \r, \t, \" or \\: write the value in single quotes`
		hash   = "a # directly after the = does not begin a comment for Docker Compose: write the value in quotes"
		behind = "there is something after the closing quote"
		open   = "a quote is not closed"
		utf8   = "must be text in UTF-8, without NUL"
	)
	tests := []struct {
		name, text string
		line       int
		want       string
	}{
		{"name alone", "hunter2", 1, form},
		{"exported name alone", "export hunter2", 1, form},
		{"two words", "hunter2 hunter2=x", 1, form},
		{"no name", "=hunter2", 1, form},
		{"digit first", "1hunter2=x", 1, form},
		{"colon", "hunter2: hunter2", 1, form},
		{"dollar in a name", "A$hunter2=x", 1, form},
		{"variable", "A=b\r\n\r\nB=${hunter2}", 3, dollar},
		{"dollar at the end", "A=hunter2$", 1, dollar},
		{"two dollars", "A=$$hunter2", 1, dollar},
		{"dollar in double quotes", "A='\n'\nB=\"\nhunter2 $x\"", 4, dollar},
		{"dollar with a backslash", `A="\$hunter2"`, 1, escape},
		{"unknown escape", "A=\"hunter2\n\\d\"", 2, escape},
		{"escape at the end", `A="hunter2\`, 1, escape},
		{"comment for a value", "A=b\nB= # hunter2", 2, hash},
		{"unclosed single quote", "A='hunter2\n\nB=c", 1, open},
		{"unclosed double quote", "\nA=\"hunter2\\\"\n", 2, open},
		{"text after a quote", "A='b\n'hunter2", 2, behind},
		{"dollar after a quote", "A='b' $hunter2", 1, behind},
		{"comment without white space", "A='b'#hunter2", 1, behind},
		{"NUL", "A=b\n#\x00hunter2", 2, utf8},
		{"invalid UTF-8", "A=b\n\nB='hunter2\n\xFF'", 4, utf8},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got, err := parse(test.text)
			var line *Error
			require.ErrorAs(t, err, &line)
			assert.EqualError(t, line, fmt.Sprintf("line %d: %s", test.line, test.want))
			assert.Empty(t, got)
		})
	}
}

// Errors about the whole file name no line.
func TestParseRefusesFile(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	tests := []struct {
		name string
		file io.Reader
		want string
	}{
		{"UTF-16, little endian", strings.NewReader("\xFF\xFEA\x00=\x00b\x00"),
			"the file is in UTF-16: save it as UTF-8"},
		{"UTF-16, big endian", strings.NewReader("\xFE\xFF\x00A\x00=\x00b"), "the file is in UTF-16: save it as UTF-8"},
		{"too large", strings.NewReader(strings.Repeat("#", maxSize+1)), "the file is larger than 1048576 bytes"},
		{"unreadable", iotest.ErrReader(broken), "broken"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			assert.EqualError(t, Parse(test.file, nil), test.want)
		})
	}
	require.NoError(t, Parse(strings.NewReader(strings.Repeat("#", maxSize)), nil))
}

// An error from set is returned with the line of the refused value, and ends the calls.
func TestParseSetFails(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	calls := 0
	err := Parse(strings.NewReader("A='b\n'\nA='c\n'\nD=e"), func(string, string) error { calls++; return broken })
	assert.Equal(t, &Error{3, broken}, err)
	assert.ErrorIs(t, err, broken)
	assert.Equal(t, 1, calls)
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{"A=b", "A='b'", `A="b\n"`, "A=$b", "export A=b # c", "A='", "\uFEFF=", "A=\xFF",
		"A= #"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := parse(text)
		var line *Error
		if errors.As(err, &line) {
			require.Empty(t, got)
			require.Positive(t, line.Line)
			require.LessOrEqual(t, line.Line, strings.Count(text, "\n")+1)
		}
		if err == nil { // a value in single quotes is literal
			value := "x" + strings.NewReplacer("'", "", "\r", "").Replace(text)
			got, err := parse("A='" + value + "'")
			require.NoError(t, err)
			require.Equal(t, []string{"A=" + value}, got)
		}
	})
}
