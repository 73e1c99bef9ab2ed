// Command conformance runs each program of the SDK's guides against a server, with Temporal's Go SDK as it comes from
// the Go module proxy.
//
//	conformance HOST:PORT
//
// One line of JSON per program: {"program": …, "result": …}; exit code 1 when one went wrong. The last program replays
// the histories of all workflows of those before it.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/google/uuid"
	enumspb "go.temporal.io/api/enums/v1"
	historypb "go.temporal.io/api/history/v1"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/client"
	sdklog "go.temporal.io/sdk/log"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"
)

// ---- activities -------------------------------------------------------------

func Greet(_ context.Context, name string) (string, error) { return fmt.Sprintf("Hello, %s!", name), nil }

// Flaky fails twice, having reported how far it came; the third attempt goes on from there.
func Flaky(ctx context.Context) (string, error) {
	attempt := activity.GetInfo(ctx).Attempt
	seen := 0
	if activity.HasHeartbeatDetails(ctx) {
		if err := activity.GetHeartbeatDetails(ctx, &seen); err != nil {
			return "", err
		}
	}
	activity.RecordHeartbeat(ctx, seen+1)
	if attempt < 3 {
		return "", fmt.Errorf("attempt %d fails on purpose", attempt)
	}
	return fmt.Sprintf("attempt %d after %d heartbeats", attempt, seen), nil
}

// Patient beats until it is told to stop.
func Patient(ctx context.Context) (string, error) {
	for {
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-time.After(200 * time.Millisecond):
			activity.RecordHeartbeat(ctx)
		}
	}
}

// ---- workflows --------------------------------------------------------------

func brief(ctx workflow.Context) workflow.Context {
	return workflow.WithActivityOptions(ctx, workflow.ActivityOptions{
		StartToCloseTimeout: 10 * time.Second,
		HeartbeatTimeout:    5 * time.Second,
		RetryPolicy:         &temporal.RetryPolicy{InitialInterval: 100 * time.Millisecond, MaximumAttempts: 5},
	})
}

func Hello(ctx workflow.Context, name string) (greeting string, err error) {
	err = workflow.ExecuteActivity(brief(ctx), Greet, name).Get(ctx, &greeting)
	return
}

func Retried(ctx workflow.Context) (result string, err error) {
	err = workflow.ExecuteActivity(brief(ctx), Flaky).Get(ctx, &result)
	return
}

func Timer(ctx workflow.Context) (string, error) {
	if err := workflow.Sleep(ctx, 300*time.Millisecond); err != nil {
		return "", err
	}
	return "the timer fired", nil
}

// Approval waits for two approvals; who approved can be asked for at any time, also when it is done.
func Approval(ctx workflow.Context) (string, error) {
	names := []string{}
	if err := workflow.SetQueryHandler(ctx, "approvals", func() ([]string, error) { return names, nil }); err != nil {
		return "", err
	}
	approve := workflow.GetSignalChannel(ctx, "approve")
	for len(names) < 2 {
		var name string
		approve.Receive(ctx, &name)
		names = append(names, name)
	}
	return strings.Join(names, " and "), nil
}

func Cancellable(ctx workflow.Context) (result string, err error) {
	ctx = workflow.WithActivityOptions(ctx, workflow.ActivityOptions{
		StartToCloseTimeout: time.Minute,
		HeartbeatTimeout:    5 * time.Second,
		WaitForCancellation: true,
	})
	err = workflow.ExecuteActivity(ctx, Patient).Get(ctx, &result)
	return
}

// ---- programs ---------------------------------------------------------------

type programs struct {
	client  client.Client
	queue   string
	started *[]client.WorkflowRun
}

func (p programs) start(ctx context.Context, name string, definition any, args ...any) (client.WorkflowRun, error) {
	options := client.StartWorkflowOptions{ID: name + "-" + uuid.NewString(), TaskQueue: p.queue}
	run, err := p.client.ExecuteWorkflow(ctx, options, definition, args...)
	if err == nil {
		*p.started = append(*p.started, run)
	}
	return run, err
}

func (p programs) result(ctx context.Context, name string, definition any, args ...any) (any, error) {
	run, err := p.start(ctx, name, definition, args...)
	if err != nil {
		return nil, err
	}
	var result string
	err = run.Get(ctx, &result)
	return result, err
}

func (p programs) approve(ctx context.Context, run client.WorkflowRun, name string) error {
	return p.client.SignalWorkflow(ctx, run.GetID(), run.GetRunID(), "approve", name)
}

func (p programs) approvals(ctx context.Context, run client.WorkflowRun) (names []string, err error) {
	value, err := p.client.QueryWorkflow(ctx, run.GetID(), run.GetRunID(), "approvals")
	if err == nil {
		err = value.Get(&names)
	}
	return
}

func (p programs) signal(ctx context.Context) (any, error) {
	run, err := p.start(ctx, "signal", Approval)
	if err != nil {
		return nil, err
	}
	for _, name := range []string{"Ada", "Grace"} {
		if err := p.approve(ctx, run, name); err != nil {
			return nil, err
		}
	}
	var result string
	err = run.Get(ctx, &result)
	return result, err
}

func (p programs) query(ctx context.Context) (any, error) {
	run, err := p.start(ctx, "query", Approval)
	if err != nil {
		return nil, err
	}
	answers := [][]string{}
	for _, name := range []string{"Ada", "Grace", ""} {
		names, err := p.approvals(ctx, run)
		if err != nil {
			return nil, err
		}
		answers = append(answers, names)
		if name == "" {
			break
		}
		if err := p.approve(ctx, run, name); err != nil {
			return nil, err
		}
		if name == "Grace" {
			if err := run.Get(ctx, nil); err != nil {
				return nil, err
			}
		}
	}
	return answers, nil
}

func (p programs) cancel(ctx context.Context) (any, error) {
	run, err := p.start(ctx, "cancel", Cancellable)
	if err != nil {
		return nil, err
	}
	for beating := false; !beating; time.Sleep(50 * time.Millisecond) {
		description, err := p.client.DescribeWorkflowExecution(ctx, run.GetID(), run.GetRunID())
		if err != nil {
			return nil, err
		}
		for _, pending := range description.GetPendingActivities() {
			beating = beating || pending.GetLastHeartbeatTime() != nil
		}
	}
	if err := p.client.CancelWorkflow(ctx, run.GetID(), run.GetRunID()); err != nil {
		return nil, err
	}
	var canceled *temporal.CanceledError
	if err := run.Get(ctx, nil); !errors.As(err, &canceled) {
		return nil, fmt.Errorf("not cancelled: %w", err)
	}
	return "cancelled", nil
}

// replay replays the histories of all workflows that were started, and returns how many there were.
func (p programs) replay(ctx context.Context) (any, error) {
	replayer := worker.NewWorkflowReplayer()
	for _, definition := range definitions {
		replayer.RegisterWorkflow(definition)
	}
	for _, run := range *p.started {
		history := &historypb.History{}
		events := p.client.GetWorkflowHistory(
			ctx, run.GetID(), run.GetRunID(), false, enumspb.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT,
		)
		for events.HasNext() {
			event, err := events.Next()
			if err != nil {
				return nil, err
			}
			history.Events = append(history.Events, event)
		}
		if err := replayer.ReplayWorkflowHistory(quiet, history); err != nil {
			return nil, fmt.Errorf("%s: %w", run.GetID(), err)
		}
	}
	return len(*p.started), nil
}

var (
	definitions = []any{Hello, Retried, Timer, Approval, Cancellable}
	quiet       = sdklog.NewStructuredLogger(slog.New(slog.NewTextHandler(io.Discard, nil)))
)

func main() {
	address := "127.0.0.1:7233"
	if len(os.Args) > 1 {
		address = os.Args[1]
	}
	c, err := client.Dial(client.Options{HostPort: address, Logger: quiet})
	if err != nil {
		fmt.Fprintln(os.Stderr, "dial:", err)
		os.Exit(2)
	}
	p := programs{client: c, queue: "conformance-go-" + uuid.NewString(), started: &[]client.WorkflowRun{}}
	w := worker.New(c, p.queue, worker.Options{})
	for _, definition := range definitions {
		w.RegisterWorkflow(definition)
	}
	for _, definition := range []any{Greet, Flaky, Patient} {
		w.RegisterActivity(definition)
	}
	if err := w.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "worker:", err)
		os.Exit(2)
	}
	code := 0
	out := json.NewEncoder(os.Stdout)
	for _, program := range []struct {
		name string
		run  func(context.Context) (any, error)
	}{
		{"hello", func(ctx context.Context) (any, error) { return p.result(ctx, "hello", Hello, "Everfold") }},
		{"retried", func(ctx context.Context) (any, error) { return p.result(ctx, "retried", Retried) }},
		{"timer", func(ctx context.Context) (any, error) { return p.result(ctx, "timer", Timer) }},
		{"signal", p.signal},
		{"query", p.query},
		{"cancel", p.cancel},
		{"replay", p.replay},
	} {
		ctx, done := context.WithTimeout(context.Background(), 30*time.Second)
		result, err := program.run(ctx)
		done()
		line := map[string]any{"program": program.name, "result": result}
		if err != nil {
			code = 1
			line = map[string]any{"program": program.name, "error": err.Error()}
		}
		_ = out.Encode(line)
	}
	w.Stop()
	c.Close()
	os.Exit(code)
}
