/* Binds a UDP socket to 10.9.0.2 and connects a TCP socket to 10.9.0.9; says what became of each. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

int main(void)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(5000) };
	inet_pton(AF_INET, "10.9.0.2", &a.sin_addr);
	int fd = socket(AF_INET, SOCK_DGRAM, 0);
	printf("bind %s\n", bind(fd, (void *)&a, sizeof a) ? strerrorname_np(errno) : "ok");
	inet_pton(AF_INET, "10.9.0.9", &a.sin_addr);
	fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
	printf("connect %s\n", connect(fd, (void *)&a, sizeof a) ? strerrorname_np(errno) : "ok");
	return 0;
}
