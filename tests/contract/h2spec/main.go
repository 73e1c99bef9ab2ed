// h2spec's cases against a server on this machine: go run . PORT REPORT.xml
package main

import (
	"log"
	"os"
	"strconv"
	"time"

	"github.com/summerwind/h2spec"
	"github.com/summerwind/h2spec/config"
)

func main() {
	if len(os.Args) != 3 {
		log.Fatal("expected a port and a report's path")
	}
	port, err := strconv.Atoi(os.Args[1])
	if err != nil {
		log.Fatalf("expected a port, found %q", os.Args[1])
	}
	settings := config.Config{
		Host:         "127.0.0.1",
		Port:         port,
		Path:         "/",
		Timeout:      2 * time.Second,
		MaxHeaderLen: 4000,
		JUnitReport:  os.Args[2],
		Strict:       true,
	}
	if _, err := h2spec.Run(&settings); err != nil {
		log.Fatal(err)
	}
}
