package sandbox

import (
	"fmt"
	"strings"
	"time"
)

// MachineDoc renders the table as docs/state-machines.md.
func MachineDoc() string {
	var b strings.Builder
	b.WriteString("# State machines\n\nGenerated from the tables in code; `go test ./internal/control/sandbox -update` writes it anew.\n\n")
	b.WriteString("## Sandbox\n\n```mermaid\nstateDiagram-v2\n    [*] --> pending\n")
	for _, s := range Machine() {
		for _, to := range s.To {
			fmt.Fprintf(&b, "    %s --> %s\n", s.Status, to)
		}
		if s.Final {
			fmt.Fprintf(&b, "    %s --> [*]\n", s.Status)
		}
	}
	b.WriteString("```\n\n| status | may become | callers may | holds | live | ends by itself |\n|---|---|---|---|---|---|\n")
	for _, s := range Machine() {
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s | %s |\n", s.Status, codes(s.To), codes(s.Actions), holds(s), yes(s.Live), exit(s.Exit))
	}
	b.WriteString("\nA transition is one conditional UPDATE on (id, expected status, incarnation). Whoever loses gets 409 `invalid_state` with the actual status,\nand nothing has changed.\n")
	return b.String()
}

func codes[T ~string](words []T) string {
	if len(words) == 0 {
		return "–"
	}
	out := make([]string, len(words))
	for i, w := range words {
		out[i] = "`" + string(w) + "`"
	}
	return strings.Join(out, " ")
}

func holds(s State) string {
	switch {
	case s.HoldsCompute:
		return "CPU, memory, disk"
	case s.HoldsDisk:
		return "disk"
	default:
		return "nothing"
	}
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func exit(e Exit) string {
	to := "removal"
	if e.To != "" {
		to = "`" + string(e.To) + "`"
	}
	return fmt.Sprintf("%s within %s: %s", to, span(e.After), e.How)
}

func span(d time.Duration) string {
	switch {
	case d%(24*time.Hour) == 0:
		return fmt.Sprintf("%d d", d/(24*time.Hour))
	case d%time.Hour == 0:
		return fmt.Sprintf("%d h", d/time.Hour)
	default:
		return fmt.Sprintf("%d min", d/time.Minute)
	}
}
