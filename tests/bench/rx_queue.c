/*
 * rx_queue.c - rival: what people build by hand where they need a multiplexor. A reader thread frames 64 KiB reads and
 * hands each message, in memory of its own, to a worker through a bounded queue of pointers under a mutex.
 */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "framing.h"

#define QUEUE_SLOTS 4096u /* a power of two; deep enough that neither side often finds the queue full or empty */
#define WORKERS_MAX 8

struct queue {
	pthread_mutex_t lock;
	pthread_cond_t not_empty, not_full;
	size_t head, tail; /* taken and added so far; the difference is the depth */
	size_t idle;       /* workers asleep */
	int writer_waits, closed;
	char *slots[QUEUE_SLOTS];
};

static struct queue queue = {
	.lock = PTHREAD_MUTEX_INITIALIZER, .not_empty = PTHREAD_COND_INITIALIZER, .not_full = PTHREAD_COND_INITIALIZER,
};

static void queue_push(struct queue *q, char *message)
{
	pthread_mutex_lock(&q->lock);
	while (q->tail - q->head == QUEUE_SLOTS) {
		q->writer_waits = 1;
		pthread_cond_wait(&q->not_full, &q->lock);
	}
	q->slots[q->tail++ % QUEUE_SLOTS] = message;
	if (q->idle > 0)
		pthread_cond_signal(&q->not_empty);
	pthread_mutex_unlock(&q->lock);
}

/* The next message, which the caller frees, or NULL once the queue is closed and drained. */
static char *queue_pop(struct queue *q)
{
	char *message = NULL;

	pthread_mutex_lock(&q->lock);
	while (q->tail == q->head && !q->closed) {
		q->idle++;
		pthread_cond_wait(&q->not_empty, &q->lock);
		q->idle--;
	}
	if (q->tail != q->head) {
		message = q->slots[q->head++ % QUEUE_SLOTS];
		/* Half empty before the reader runs again: a wake-up for every free slot would be a switch a message. */
		if (q->writer_waits && q->tail - q->head <= QUEUE_SLOTS / 2) {
			q->writer_waits = 0;
			pthread_cond_signal(&q->not_full);
		}
	}
	pthread_mutex_unlock(&q->lock);
	return message;
}

static void queue_close(struct queue *q)
{
	pthread_mutex_lock(&q->lock);
	q->closed = 1;
	pthread_cond_broadcast(&q->not_empty);
	pthread_mutex_unlock(&q->lock);
}

static void *worker(void *arg)
{
	struct tally *tally = arg;
	char *message;

	while ((message = queue_pop(&queue))) {
		tally_message(tally, message, wire_size(message));
		free(message);
	}
	return NULL;
}

/* Frames and hands over until the END of the connection has been queued. */
static double read_and_hand_over(int fd)
{
	struct framer framer;
	double start = 0;
	int ended = 0;

	framer_init(&framer);
	while (!ended) {
		ssize_t n = recv(fd, framer_space(&framer), FRAMER_RECV_BYTES, 0);
		const char *at = framer.data, *stop;

		if (n <= 0)
			die("recv");
		if (start == 0)
			start = now_seconds();
		stop = framer_space(&framer) + n;
		while ((size_t)(stop - at) >= WIRE_LEN_BYTES && (size_t)(stop - at) >= wire_size(at)) {
			size_t size = wire_size(at);
			struct wire_head head;
			char *message = malloc(size);

			if (!message)
				die("malloc");
			memcpy(message, at, size);
			memcpy(&head, at, sizeof head);
			ended |= head.kind == WIRE_END;
			queue_push(&queue, message);
			at += size;
		}
		framer.have = (size_t)(stop - at);
		memmove(framer.data, at, framer.have);
	}
	framer_free(&framer);
	return start;
}

int main(int argc, char **argv)
{
	struct options opt = parse_options(argc, argv, "queue");
	struct tally tallies[WORKERS_MAX] = { 0 };
	pthread_t threads[WORKERS_MAX];
	int fd;

	opt.conns = 1;
	if (opt.threads > WORKERS_MAX)
		return 2;
	struct peer peer = connect_peer(argv[0], "peer", "source", &opt, &fd);

	for (int i = 0; i < opt.threads; i++)
		if (pthread_create(&threads[i], NULL, worker, &tallies[i]))
			die("pthread_create");
	double start = read_and_hand_over(fd);

	queue_close(&queue);
	for (int i = 0; i < opt.threads; i++)
		pthread_join(threads[i], NULL);
	double seconds = now_seconds() - start;

	for (int i = 1; i < opt.threads; i++)
		tally_merge(&tallies[0], &tallies[i]);
	close(fd);
	reap_peer(&peer);
	return report_rate(&tallies[0], 1, seconds);
}
