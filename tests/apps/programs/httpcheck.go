// An HTTP server and 200 concurrent clients in one Go program, and a child process. Prints one line for each.
package main

import (
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"sync"
)

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	go http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, strings.Repeat(r.URL.Path, 1000))
	}))
	answers := make([]string, 200)
	var group sync.WaitGroup
	for i := range answers {
		group.Add(1)
		go func(i int) {
			defer group.Done()
			response, err := http.Get(fmt.Sprintf("http://%s/%d", listener.Addr(), i))
			if err != nil {
				answers[i] = "failed"
				return
			}
			body, _ := io.ReadAll(response.Body)
			response.Body.Close()
			answers[i] = string(body)
		}(i)
	}
	group.Wait()
	fmt.Printf("%x\n", sha256.Sum256([]byte(strings.Join(answers, ""))))
	addresses, err := net.LookupHost("localhost")
	fmt.Println(len(addresses) > 0, err)
	out, err := exec.Command("sh", "-c", "echo child; exit 4").Output()
	fmt.Println(string(out), err)
}
