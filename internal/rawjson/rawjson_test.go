package rawjson

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"
)

// What is quick and what is not give the same strings.
func TestAppendString(t *testing.T) {
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
