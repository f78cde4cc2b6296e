/* A DHCP server on the interface named first that gives everybody the address named second, with a
 * prefix of 24 bits. Returns when it is there, and ends with its first acknowledgement. */
#include <arpa/inet.h>
#include <net/if.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { DISCOVER = 1, OFFER = 2, REQUEST = 3, ACK = 5 };
enum { OPTIONS_AT = 240, FIXED = 236 };

/* The message type option of a request. */
static int type_of(const unsigned char *message, long length)
{
	for (long at = OPTIONS_AT; at + 2 < length && message[at] != 255; at += 2 + message[at + 1])
		if (message[at] == 53)
			return message[at + 2];
	return 0;
}

int main(int argc, char **argv)
{
	if (argc != 3)
		return 2;
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons(67) };
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(68) };
	to.sin_addr.s_addr = htonl(INADDR_BROADCAST);
	int fd = socket(AF_INET, SOCK_DGRAM, 0), on = 1;
	if (setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, argv[1], strlen(argv[1])) ||
	    setsockopt(fd, SOL_SOCKET, SO_BROADCAST, &on, sizeof on) ||
	    bind(fd, (void *)&at, sizeof at))
		return 1;
	if (fork() != 0)
		return 0;
	for (int n = 0; n < 3; n++)
		close(n);
	alarm(60);
	for (;;) {
		unsigned char in[1500], out[300] = { 2, 1, 6 };
		long length = recv(fd, in, sizeof in, 0);
		int type = length > OPTIONS_AT ? type_of(in, length) : 0;
		if (type != DISCOVER && type != REQUEST)
			continue;
		memcpy(out + 4, in + 4, 4);    /* xid */
		memcpy(out + 28, in + 28, 16); /* chaddr */
		inet_pton(AF_INET, argv[2], out + 16);
		unsigned char options[] = {
			99, 130, 83, 99, 53, 1, type == DISCOVER ? OFFER : ACK,
			54, 4, 10, 9, 0, 1,      /* the server */
			51, 4, 0, 0, 14, 16,     /* an hour */
			1, 4, 255, 255, 255, 0, 255,
		};
		memcpy(out + FIXED, options, sizeof options);
		sendto(fd, out, sizeof out, 0, (void *)&to, sizeof to);
		if (type == REQUEST)
			return 0;
	}
}
