package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"strings"
	"time"

	"github.com/charmbracelet/lipgloss"
	"github.com/charmbracelet/lipgloss/table"

	"skerry.dev/skerry/gen/restapi"
)

// printJSON prints a value as the API gave it.
func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// collect takes at most limit items; zero means all.
func collect[T any](items iter.Seq2[T, error], limit int) ([]T, error) {
	list := []T{} // an empty list is [] in JSON
	for item, err := range items {
		if err != nil {
			return nil, err
		}
		list = append(list, item)
		if limit > 0 && len(list) == limit {
			break
		}
	}
	return list, nil
}

// printList prints items as the caller asked.
func printList[T any](e *Env, g *Globals, items []T, none string, head []string, row func(T) []string) error {
	if g.Output == "json" {
		return printJSON(e.Stdout, items)
	}
	if len(items) == 0 {
		fmt.Fprintln(e.Stderr, none)
		return nil
	}
	rows := make([][]string, len(items))
	for i, item := range items {
		rows[i] = row(item)
	}
	printTable(e.Stdout, head, rows)
	return nil
}

func printTable(w io.Writer, head []string, rows [][]string) {
	plain := lipgloss.NewRenderer(w).NewStyle().PaddingRight(2)
	title := plain.Bold(true)
	t := table.New().Border(lipgloss.HiddenBorder()).
		BorderTop(false).BorderBottom(false).BorderLeft(false).BorderRight(false).BorderColumn(false).BorderHeader(false).
		StyleFunc(func(row, _ int) lipgloss.Style {
			if row == table.HeaderRow {
				return title
			}
			return plain
		}).
		Headers(head...)
	for _, row := range rows {
		cells := make([]string, len(row))
		for i, cell := range row {
			cells[i] = clean(cell)
		}
		t.Row(cells...)
	}
	for line := range strings.Lines(t.Render()) {
		fmt.Fprintln(w, strings.TrimRight(line, " \n"))
	}
}

// printFields prints one thing, a field a line.
func printFields(w io.Writer, fields [][2]string) {
	label := lipgloss.NewRenderer(w).NewStyle().Faint(true).Width(14)
	for _, f := range fields {
		if f[1] != "" {
			fmt.Fprintf(w, "%s%s\n", label.Render(f[0]), clean(f[1]))
		}
	}
}

// age is how long ago t was, in the one unit that matters.
func age(t time.Time) string {
	d := time.Since(t)
	if d < 0 {
		return "in " + short(-d)
	}
	return short(d)
}

func short(d time.Duration) string {
	switch {
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

func when(t restapi.OptDateTime) string {
	if !t.Set {
		return ""
	}
	return t.Value.Local().Format(time.DateTime)
}

// size is a number of bytes for people.
func size(n int64) string {
	const units = "kMGTPE"
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	v, i := float64(n)/1000, 0
	for v >= 999.95 && i < len(units)-1 {
		v, i = v/1000, i+1
	}
	return fmt.Sprintf("%.1f %cB", v, units[i])
}
