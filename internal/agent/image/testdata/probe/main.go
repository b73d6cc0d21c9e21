// Command probe runs as PID 1 on a root tree of the cache and says what it
// finds there; the test compares.
package main

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

func main() {
	buf := make([]byte, 64)
	n, err := syscall.Getxattr("/data/marked", "user.skerry", buf)
	if err != nil {
		fmt.Println("xattr:", err)
	} else {
		fmt.Println("xattr", string(buf[:n]))
	}
	content, err := os.ReadFile("/data/marked")
	fmt.Printf("content %q %v\n", content, err)
	info, err := os.Stat("/.skerry/guest")
	if err != nil {
		fmt.Println("guest:", err)
	} else {
		fmt.Println("guest", info.Mode())
	}
	fmt.Println("write", errors.Join(
		os.WriteFile("/data/new", []byte("x"), 0o600),
		os.WriteFile("/data/marked", []byte("changed"), 0o600),
		syscall.Setxattr("/data/marked", "user.more", []byte("1"), 0),
		os.Remove("/data/gone"),
		os.Remove("/.skerry/guest"),
	))
	// The attribute of the lower layer comes up with the file.
	n, err = syscall.Getxattr("/data/marked", "user.skerry", buf)
	fmt.Println("copied up", string(buf[:max(n, 0)]), err)
	_, err = os.Stat("/data/gone")
	fmt.Println("gone", errors.Is(err, os.ErrNotExist))
}
