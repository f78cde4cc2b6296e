/* rx_header_body.c - rival: the textbook loop, one recv for the length word and one for the body. */
#include <sys/socket.h>
#include <unistd.h>

#include "harness.h"

int main(int argc, char **argv)
{
	static char message[WIRE_MSG_MAX_BYTES];
	struct options opt = parse_options(argc, argv, "header-body");
	struct tally tally = { 0 };
	double start = 0;
	int fd;

	opt.conns = 1;
	struct peer peer = connect_peer(argv[0], "peer", "source", &opt, &fd);

	while (tally.ends == 0) {
		size_t size;

		if (recv(fd, message, WIRE_LEN_BYTES, MSG_WAITALL) != WIRE_LEN_BYTES)
			die("recv of a length");
		if (start == 0)
			start = now_seconds();
		size = wire_size(message);
		if (size > sizeof message ||
		    recv(fd, message + WIRE_LEN_BYTES, size - WIRE_LEN_BYTES, MSG_WAITALL) != (ssize_t)(size - WIRE_LEN_BYTES))
			die("recv of a body");
		tally_message(&tally, message, size);
	}
	double seconds = now_seconds() - start;

	close(fd);
	reap_peer(&peer);
	return report_rate(&tally, 1, seconds);
}
