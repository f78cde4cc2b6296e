/* rx_zmq.c - rival: ZeroMQ PULL over tcp, messages received into a buffer of the caller's. */
#include <stdio.h>
#include <zmq.h>

#include "harness.h"

#define HIGH_WATER_MESSAGES 100000 /* per side; the default of 1000 makes both sides stop and go */

int main(int argc, char **argv)
{
	static char message[WIRE_MSG_MAX_BYTES];
	struct options opt = parse_options(argc, argv, "pull");
	void *context = zmq_ctx_new(), *pull = zmq_socket(context, ZMQ_PULL);
	int high_water = HIGH_WATER_MESSAGES;
	char endpoint[64];
	size_t endpoint_len = sizeof endpoint;
	struct tally tally = { 0 };
	double start = 0;
	unsigned port;

	zmq_setsockopt(pull, ZMQ_RCVHWM, &high_water, sizeof high_water);
	if (zmq_bind(pull, "tcp://127.0.0.1:*") < 0 ||
	    zmq_getsockopt(pull, ZMQ_LAST_ENDPOINT, endpoint, &endpoint_len) < 0 ||
	    sscanf(endpoint, "tcp://127.0.0.1:%u", &port) != 1)
		die("zmq_bind");
	opt.port = (uint16_t)port;
	struct peer peer = start_peer(argv[0], "tx_zmq", "push", &opt);

	while (tally.ends == 0) {
		int size = zmq_recv(pull, message, sizeof message, 0);

		if (size < 0)
			die("zmq_recv");
		if (start == 0)
			start = now_seconds();
		tally_message(&tally, message, (size_t)size);
	}
	double seconds = now_seconds() - start;

	zmq_close(pull);
	zmq_ctx_term(context);
	reap_peer(&peer);
	return report_rate(&tally, 1, seconds);
}
