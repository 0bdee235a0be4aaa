package spelling

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestNearest(t *testing.T) {
	t.Parallel()
	names := []string{"status", "level", "assigned_user"}
	for name, want := range map[string]string{
		"stauts": "status", "Status": "status", "stats": "status", "levels": "level", "asigned-user": "assigned_user",
		"x": "", "query": "", "": "",
	} {
		assert.Equal(t, want, Nearest(name, names), name)
	}
	assert.Empty(t, Nearest("status", nil))
	assert.Equal(t, "assigned_user", Slip("ASIGNED_USER", names))
	assert.Equal(t, "level", Slip("LEEVL", names), "a swap is one slip")
	assert.Empty(t, Slip("asigned_usre", names))
}
