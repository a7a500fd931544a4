package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/dtcp-relay/dtcp/internal/relay"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// metrics are what /metrics and /healthz tell. What the relay counts is read
// from it at each question, so that bytes are live; no label has values that
// users choose.
type metrics struct {
	daemon   *daemon
	registry *prometheus.Registry
	listener net.Listener // nil: nowhere
	server   *http.Server
	stopped  chan struct{} // closed when server has ended; nil if it was not begun

	logins     prometheus.Counter
	denied     prometheus.Counter
	questions  *prometheus.CounterVec
	unanswered prometheus.Counter
	seconds    *prometheus.HistogramVec
	endings    *prometheus.CounterVec
}

func newMetrics(d *daemon) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	m := &metrics{
		daemon:     d,
		registry:   prometheus.NewRegistry(),
		logins:     counter("dtcpd_xmpp_logins_total", "Logins of the component; standalone: of users."),
		denied:     counter("dtcpd_xmpp_logins_denied_total", "Logins of users that were denied, when standalone."),
		unanswered: counter("dtcpd_xmpp_unanswered_total", "Questions whose answer could not be sent."),
		questions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "dtcpd_xmpp_questions_total", Help: "Questions that the relay was asked by XMPP, by what they are for."}, []string{"kind"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "dtcpd_relay_stream_seconds", Help: "How long streams lasted that have ended.",
			Buckets: []float64{1, 10, 60, 600, 3600, 6 * 3600, 24 * 3600}}, []string{"kind"}),
		endings: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "dtcpd_relay_streams_ended_total", Help: "Streams that have ended, by why."}, []string{"reason"}),
	}
	for _, kind := range questionKinds {
		m.questions.WithLabelValues(kind)
	}
	for _, why := range []string{relay.EndedClosed, relay.EndedListener, relay.EndedDialer, relay.EndedQuota, relay.EndedDenied, relay.EndedShutdown} {
		m.endings.WithLabelValues(why)
	}
	for _, kind := range []string{relay.KindLease, relay.KindProxy} {
		m.seconds.WithLabelValues(kind)
	}
	build := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "dtcpd_build_info", Help: "The version of dtcpd.", ConstLabels: prometheus.Labels{"version": buildVersion()},
	}, func() float64 { return 1 })
	m.registry.MustRegister(m.logins, m.denied, m.unanswered, m.questions, m.seconds, m.endings, build, relayCollector{d},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// What a question can be for.
const (
	kindLease     = "lease"
	kindProxy     = "proxy"
	kindDiscovery = "discovery"
	kindOther     = "other"
)

var questionKinds = []string{kindLease, kindProxy, kindDiscovery, kindOther}

// asked counts a question.
func (m *metrics) asked(q stanza.IQ) {
	kind := kindOther
	switch q.Payload.Name.Space {
	case "urn:x-dtcp:relay:0":
		kind = kindLease
	case "http://jabber.org/protocol/bytestreams":
		kind = kindProxy
	case "http://jabber.org/protocol/disco#info", "http://jabber.org/protocol/disco#items":
		kind = kindDiscovery
	}
	m.questions.WithLabelValues(kind).Inc()
}

// ended counts a stream that has ended.
func (m *metrics) ended(u relay.Usage) {
	m.endings.WithLabelValues(u.Why).Inc()
	m.seconds.WithLabelValues(u.Kind).Observe(u.End.Sub(u.Start).Seconds())
}

// What is read from the relay.
var (
	descBytes       = prometheus.NewDesc("dtcpd_relay_bytes_total", "Bytes of streams, read from either end (in) and written to either end (out).", []string{"direction"}, nil)
	descStreams     = prometheus.NewDesc("dtcpd_relay_streams", "Streams that are open.", nil, nil)
	descJoined      = prometheus.NewDesc("dtcpd_relay_streams_total", "Streams that were joined, by kind.", []string{"kind"}, nil)
	descConnections = prometheus.NewDesc("dtcpd_relay_connections", "Connections that are not joined, by state.", []string{"state"}, nil)
	descAccepted    = prometheus.NewDesc("dtcpd_relay_accepted_total", "Connections that were accepted.", nil, nil)
	descRefused     = prometheus.NewDesc("dtcpd_relay_refused_total", "What was refused, by reason.", []string{"reason"}, nil)
	descOwners      = prometheus.NewDesc("dtcpd_relay_owners", "Users that limits are counted for.", nil, nil)
	descAddresses   = prometheus.NewDesc("dtcpd_relay_addresses", "Addresses that limits are counted for.", nil, nil)
	descDraining    = prometheus.NewDesc("dtcpd_relay_draining", "1 while the relay takes no new streams.", nil, nil)
	descHealthy     = prometheus.NewDesc("dtcpd_healthy", "1 while /healthz says ok.", nil, nil)
	descUsageLost   = prometheus.NewDesc("dtcpd_usage_lost_total", "Records that the usage log has not.", nil, nil)
)

// relayCollector reads a relay's counters.
type relayCollector struct{ d *daemon }

// Describe sends what Collect can send.
func (c relayCollector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descBytes, descStreams, descJoined, descConnections, descAccepted, descRefused,
		descOwners, descAddresses, descDraining, descHealthy, descUsageLost} {
		out <- d
	}
}

// Collect sends what the relay counts now.
func (c relayCollector) Collect(out chan<- prometheus.Metric) {
	s := c.d.relay.Stats()
	send := func(d *prometheus.Desc, kind prometheus.ValueType, value float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, kind, value, labels...)
	}
	gauge, counter := prometheus.GaugeValue, prometheus.CounterValue
	send(descBytes, counter, float64(s.BytesIn), "in")
	send(descBytes, counter, float64(s.BytesOut), "out")
	send(descStreams, gauge, float64(s.Streams))
	send(descJoined, counter, float64(s.LeaseStreams), relay.KindLease)
	send(descJoined, counter, float64(s.ProxyStreams), relay.KindProxy)
	send(descConnections, gauge, float64(s.Fresh), "fresh")
	send(descConnections, gauge, float64(s.Waiting), "waiting")
	send(descConnections, gauge, float64(s.Held), "held")
	send(descConnections, gauge, float64(s.Observing), "observing")
	send(descAccepted, counter, float64(s.Accepted))
	for reason, n := range s.Refused {
		send(descRefused, counter, float64(n), reason)
	}
	send(descOwners, gauge, float64(s.Owners))
	send(descAddresses, gauge, float64(s.Addresses))
	send(descDraining, gauge, truth(s.Draining))
	send(descHealthy, gauge, truth(c.d.health() == ""))
	if c.d.usage != nil {
		send(descUsageLost, counter, float64(c.d.usage.lost.Load()))
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// listen opens the port of /metrics and /healthz, which serve begins to serve.
func (m *metrics) listen(address string) (err error) {
	if m.listener, err = listenAt("metrics", address); err != nil {
		return err
	}
	m.daemon.log.say("metrics are at http://%s/metrics", m.listener.Addr())
	return nil
}

func (m *metrics) serve() {
	if m.listener == nil {
		return
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		if why := m.daemon.health(); why != "" {
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = io.WriteString(w, clean(why)+"\n")
			return
		}
		_, _ = io.WriteString(w, "ok\n")
	})
	m.server = &http.Server{
		Handler: mux, MaxHeaderBytes: 16 << 10,
		ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute,
	}
	m.stopped = make(chan struct{})
	// Owned by metrics; close ends the server and waits.
	go func() {
		defer close(m.stopped)
		_ = m.server.Serve(m.listener) // it ends when it is closed, or with a listener that cannot be mended
	}()
}

func (m *metrics) close() {
	if m.stopped == nil {
		if m.listener != nil {
			m.listener.Close()
		}
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if m.server.Shutdown(ctx) != nil {
		m.server.Close()
	}
	<-m.stopped
}
