// Command worker is what runs inside the sandboxes of the tests: it counts in
// memory and in a file, and tells both. With a word it says that and ends.
package main

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
)

const file = "/home/user/count"

func main() {
	if len(os.Args) > 1 {
		fmt.Println(os.Args[1])
		return
	}
	var mu sync.Mutex
	count := 0
	http.HandleFunc("/add", func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		f, err := os.OpenFile(file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err == nil {
			_, err = f.WriteString("x")
			_ = f.Close()
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		count++
		fmt.Fprint(w, count)
	})
	http.HandleFunc("/look", func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		b, _ := os.ReadFile(file)
		fmt.Fprintf(w, "%d %d %d", count, strings.Count(string(b), "x"), os.Getpid())
	})
	fmt.Fprintln(os.Stderr, http.ListenAndServe(":8080", nil))
	os.Exit(1)
}
