/* SPDX-License-Identifier: MIT */
/*
 * kcm.h - the user interface of AF_KCM, the Kernel Connection Multiplexor.
 *
 * A drop-in for <linux/kcm.h> on machines that lack it, and a companion where
 * they have it: either order of inclusion works, in C99 and in C++.  It adds
 * what <linux/kcm.h> leaves to other headers, the family and the option level,
 * so that a program needs this one file:
 *
 *     int kcm = socket(AF_KCM, SOCK_SEQPACKET, KCMPROTO_CONNECTED);
 *     struct kcm_attach attach = { tcp_fd, bpf_fd };
 *     ioctl(kcm, SIOCKCMATTACH, &attach);
 *
 * kcm_parser.h, beside this file, makes the BPF program that bpf_fd names.
 */
#ifndef KCMSHIM_KCM_H
#define KCMSHIM_KCM_H

#include <linux/sockios.h> /* SIOCPROTOPRIVATE, the base of the three requests */
#include <sys/socket.h>    /* first, so that the definitions below only fill gaps */

#ifndef PF_KCM
#define PF_KCM 41
#endif
#ifndef AF_KCM
#define AF_KCM PF_KCM
#endif

/* The level of KCM_RECV_DISABLE in getsockopt(2) and setsockopt(2). */
#ifndef SOL_KCM
#define SOL_KCM 281
#endif

/* send(2) flag: more messages follow at once; transmission may wait for them. */
#ifndef MSG_BATCH
#define MSG_BATCH 0x40000
#endif

/*
 * <linux/kcm.h> guards itself with KCM_KERNEL_H.  Honouring that name here and
 * setting it makes whichever of the two headers comes second an empty one.
 */
#ifndef KCM_KERNEL_H
#define KCM_KERNEL_H

/* SIOCKCMATTACH: puts a connected TCP socket under the multiplexor. */
struct kcm_attach {
	int fd;     /* the TCP socket */
	int bpf_fd; /* a BPF_PROG_TYPE_SOCKET_FILTER program: message length, or 0 for "need more" */
};

/* SIOCKCMUNATTACH: takes it back; the TCP socket is an ordinary one again. */
struct kcm_unattach {
	int fd; /* the TCP socket */
};

/* SIOCKCMCLONE: one more KCM socket on the same multiplexor. */
struct kcm_clone {
	int fd; /* written by the call: the new KCM socket */
};

#define SIOCKCMATTACH (SIOCPROTOPRIVATE + 0)
#define SIOCKCMUNATTACH (SIOCPROTOPRIVATE + 1)
#define SIOCKCMCLONE (SIOCPROTOPRIVATE + 2)

/* The only protocol of the family. */
#define KCMPROTO_CONNECTED 0

/* SOL_KCM option, an int: non-zero takes this KCM socket out of receive rotation. */
#define KCM_RECV_DISABLE 1

#endif /* KCM_KERNEL_H */

#endif /* KCMSHIM_KCM_H */
