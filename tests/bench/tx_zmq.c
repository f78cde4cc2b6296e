/* tx_zmq.c - the peer of rx_zmq: ZeroMQ PUSH, one zmq_send a message; ZeroMQ batches them on the wire itself. */
#include <stdio.h>
#include <stdlib.h>
#include <zmq.h>

#include "harness.h"

#define HIGH_WATER_MESSAGES 100000 /* as rx_zmq */
#define MESSAGES_PER_CLOCK_LOOK 1024

int main(int argc, char **argv)
{
	struct options opt = parse_options(argc, argv, "push");
	void *context = zmq_ctx_new(), *push = zmq_socket(context, ZMQ_PUSH);
	int high_water = HIGH_WATER_MESSAGES;
	char endpoint[64], *message = calloc(1, opt.size);
	double stop = now_seconds() + opt.duration_ms * 1e-3;
	uint64_t seq = 0;

	zmq_setsockopt(push, ZMQ_SNDHWM, &high_water, sizeof high_water);
	snprintf(endpoint, sizeof endpoint, "tcp://127.0.0.1:%u", (unsigned)opt.port);
	if (!message || zmq_connect(push, endpoint) < 0)
		die("zmq_connect");
	while (now_seconds() < stop) {
		for (int i = 0; i < MESSAGES_PER_CLOCK_LOOK; i++) {
			wire_fill(message, opt.size, 0, WIRE_DATA, seq++);
			if (zmq_send(push, message, opt.size, 0) < 0)
				die("zmq_send");
		}
	}
	wire_fill(message, opt.size, 0, WIRE_END, seq);
	if (zmq_send(push, message, opt.size, 0) < 0)
		die("zmq_send");
	zmq_close(push);
	zmq_ctx_term(context);
	free(message);
	return 0;
}
