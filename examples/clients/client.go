// Sends JSON values, one a line on standard input, to a millrace server, and retries as docs/clients.md says.
//
//	client [--form FORM] [--ack LEVEL] [--token TOKEN] [--resend-undecided] [--attempts N] URL < payloads.ndjson
//
// Build it with `go build client.go`. Exit status: 0 all accepted, 1 refused, 2 usage, 3 not admitted in time, 4 undecided.
// Standard library only, Go 1.19 or newer.
package main

import (
	"bufio"
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"
)

const (
	payloadsMax   = 500              // per request
	bytesMax      = 512 << 10        // per request; the server's MAX_LENGTH is 1 MiB by default
	answerTimeout = 60 * time.Second // longer than the server's ACK_TIMEOUT of 30 s
	idleMax       = 30 * time.Second // shorter than the server's IDLE_TIMEOUT of 75 s
	backoffFirst  = 100 * time.Millisecond
	backoffMax    = 10 * time.Second
	jitterMax     = 250 * time.Millisecond // on top of what the server asked for
)

// form is how payloads are put together.
type form struct{ contentType, before, between, after string }

var forms = map[string]form{
	"collection": {"application/json", `{"data":[`, ",", "]}"},
	"array":      {"application/json", "[", ",", "]"},
	"lines":      {"application/x-ndjson", "", "\n", "\n"},
}

// failed: the request is not known to be accepted; status is the exit status.
type failed struct {
	status int
	text   string
}

func (f *failed) Error() string { return f.text }

type client struct {
	http            http.Client
	form            form
	url, ack, token string
	resendUndecided bool
	attempts        int
}

// answer is what one attempt came to; status is 0 without an answer.
type answer struct {
	status     int
	text       string
	retryAfter time.Duration
	// notSent: no connection came about, so the server has seen nothing of the request.
	notSent bool
}

func (c *client) post(body []byte) answer {
	request, err := http.NewRequest(http.MethodPost, c.url, bytes.NewReader(body))
	if err != nil {
		return answer{text: err.Error(), notSent: true}
	}
	request.Header.Set("content-type", c.form.contentType)
	if c.ack != "" {
		request.Header.Set("millrace-ack", c.ack)
	}
	if c.token != "" {
		request.Header.Set("authorization", "Bearer "+c.token)
	}
	// Without this the transport would send the body again by itself when a kept connection breaks.
	request.GetBody = nil
	response, err := c.http.Do(request)
	if err != nil {
		var op *net.OpError
		dial := errors.As(err, &op) && op.Op == "dial"
		return answer{text: "no answer: " + err.Error(), notSent: dial}
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, 64<<10))
	if err != nil {
		return answer{text: "answer cut: " + err.Error()}
	}
	seconds, err := strconv.Atoi(response.Header.Get("retry-after"))
	if err != nil || seconds < 0 {
		seconds = 0
	}
	return answer{status: response.StatusCode, text: string(text), retryAfter: time.Duration(seconds) * time.Second}
}

// send sends JSON texts as one request, and returns nil once they are accepted.
func (c *client) send(payloads [][]byte) *failed {
	body := append([]byte(c.form.before), bytes.Join(payloads, []byte(c.form.between))...)
	body = append(body, c.form.after...)
	undecided := false // some attempt may have been admitted
	var got answer
	for attempt := 0; attempt < c.attempts; attempt++ {
		if attempt > 0 {
			pause := backoff(attempt, got.retryAfter)
			fmt.Fprintf(os.Stderr, "%d: %s; attempt %d in %d ms\n", got.status, got.text, attempt+1, pause.Milliseconds())
			time.Sleep(pause)
		}
		got = c.post(body)
		why := fmt.Sprintf("%d: %s", got.status, got.text)
		switch {
		case got.status == 200:
			return nil
		case got.notSent:
		case got.status == 408, got.status == 429, got.status == 503:
			// Nothing was admitted: sending it again makes no duplicates.
		case got.status >= 400 && got.status < 500, got.status == 501:
			return &failed{1, why} // new attempts would get it as well
		case got.status == 502 && bytes.Contains([]byte(got.text), []byte(`"accepted":`)):
			return &failed{1, why} // everything was admitted, and some of it went to the server's dead letters
		default:
			// 504, a lost connection, or a gateway's own error: it may be admitted or not.
			undecided = true
			if !c.resendUndecided {
				return &failed{4, why}
			}
		}
	}
	status := 3
	if undecided {
		status = 4
	}
	return &failed{status, fmt.Sprintf("%d: %s; %d attempts", got.status, got.text, c.attempts)}
}

var random = rand.New(rand.NewSource(time.Now().UnixNano()))

// backoff is what the server asked for and a little more, or full jitter if it did not.
func backoff(attempt int, wait time.Duration) time.Duration {
	most := backoffMax
	if wait > 0 {
		most = jitterMax
	} else if attempt < 7 {
		most = backoffFirst << attempt
	}
	return wait + time.Duration(random.Int63n(int64(most)))
}

// sendAll sends every line, and says how many were accepted.
func (c *client) sendAll(input io.Reader) (int, error) {
	accepted, size := 0, 0
	var group [][]byte
	flush := func() error {
		if len(group) > 0 {
			if failure := c.send(group); failure != nil {
				return failure
			}
		}
		accepted, size, group = accepted+len(group), 0, nil
		return nil
	}
	lines := bufio.NewScanner(input)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		line := append([]byte(nil), bytes.TrimSpace(lines.Bytes())...)
		if len(line) == 0 {
			continue
		}
		if len(group) >= payloadsMax || size+len(line) > bytesMax {
			if err := flush(); err != nil {
				return accepted, err
			}
		}
		group, size = append(group, line), size+len(line)+1
	}
	if err := lines.Err(); err != nil {
		return accepted, err
	}
	return accepted, flush()
}

func main() {
	form := flag.String("form", "collection", "collection, array or lines")
	ack := flag.String("ack", "", "queued, spooled or stored")
	token := flag.String("token", "", "sent as a bearer token; otherwise MILLRACE_TOKEN")
	resend := flag.Bool("resend-undecided", false, "may store payloads twice")
	attempts := flag.Int("attempts", 8, "attempts per request")
	flag.Parse()
	made, known := forms[*form]
	if flag.NArg() != 1 || !known {
		flag.Usage()
		os.Exit(2)
	}
	if *token == "" {
		// Other users of the host see arguments, but not the environment.
		*token = os.Getenv("MILLRACE_TOKEN")
	}
	// One connection at a time. It belongs to one core of the server: use several to use several cores.
	transport := &http.Transport{
		DialContext:     (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
		IdleConnTimeout: idleMax,
		Proxy:           http.ProxyFromEnvironment,
	}
	c := &client{
		http: http.Client{Transport: transport, Timeout: answerTimeout},
		form: made, url: flag.Arg(0), ack: *ack, token: *token, resendUndecided: *resend, attempts: *attempts,
	}
	accepted, err := c.sendAll(os.Stdin)
	if err == nil {
		fmt.Fprintf(os.Stderr, "%d payloads accepted\n", accepted)
		return
	}
	fmt.Fprintf(os.Stderr, "%d payloads accepted, then: %v\n", accepted, err)
	var failure *failed
	if errors.As(err, &failure) {
		os.Exit(failure.status)
	}
	os.Exit(2)
}
