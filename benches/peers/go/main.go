// The well-known Go design, "1 million requests per minute": a handler decodes the collection and puts each payload into a
// buffered channel; a dispatcher gives each to a worker that is free; a worker encodes it again and uploads it.
//
//	go build -o peer . && ../measure.sh 8090 /payloads collection env GOMAXPROCS=1 STORE=null ./peer
//
// STORE is `null`, or the address of a store to which objects are put without a signature; a client that signs costs more.
// MAX_WORKERS and MAX_QUEUE as in the design. What it does not have, as the design has not: a bound on what waits (the
// dispatcher starts a goroutine for each job), a retry, a drain.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strconv"
	"sync/atomic"
)

const maxLength = 1 << 20

type payload map[string]any

type collection struct {
	Version string    `json:"version"`
	Token   string    `json:"token"`
	Data    []payload `json:"data"`
}

type job struct{ payload payload }

var (
	jobs   chan job
	store  = os.Getenv("STORE")
	number atomic.Uint64
	client = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1024}}
)

func setting(name string, usual int) int {
	if value, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return value
	}
	return usual
}

func (p payload) upload() error {
	body := new(bytes.Buffer)
	if err := json.NewEncoder(body).Encode(p); err != nil {
		return err
	}
	if store == "null" {
		return nil
	}
	url := fmt.Sprintf("%s/bench/in/%d.json", store, number.Add(1))
	request, err := http.NewRequest(http.MethodPut, url, body)
	if err != nil {
		return err
	}
	answer, err := client.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	_, err = io.Copy(io.Discard, answer.Body)
	return err
}

// worker registers the channel on which it wants its next job, and waits for it.
func worker(free chan<- chan job) {
	mine := make(chan job)
	for {
		free <- mine
		if err := (<-mine).payload.upload(); err != nil {
			log.Println("upload:", err)
		}
	}
}

func dispatch(free <-chan chan job) {
	for next := range jobs {
		go func() {
			worker := <-free
			worker <- next
		}()
	}
}

func handle(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	var content collection
	if err := json.NewDecoder(io.LimitReader(r.Body, maxLength)).Decode(&content); err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	for _, payload := range content.Data {
		jobs <- job{payload}
	}
	w.WriteHeader(http.StatusOK)
}

func main() {
	workers, queue := setting("MAX_WORKERS", 100), setting("MAX_QUEUE", 10000)
	jobs = make(chan job, queue)
	free := make(chan chan job, workers)
	for range workers {
		go worker(free)
	}
	go dispatch(free)
	http.HandleFunc("/payloads", handle)
	log.Fatal(http.ListenAndServe("127.0.0.1:8090", nil))
}
