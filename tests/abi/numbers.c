/* SPDX-License-Identifier: MIT */
/*
 * numbers.c - what a program sees of the KCM interface, one "name value" a line.
 *
 * Compiled several times, as C and as C++, with the headers in every order:
 * -DKCM_FIRST, -DLINUX_FIRST, -DKCM_ONLY or -DLINUX_ONLY.  All must print the same.
 */
#include <stddef.h>
#include <stdio.h>

#if defined KCM_ONLY
#include "kcm.h"
#elif defined KCM_FIRST
#include "kcm.h"
#include <sys/socket.h>
#include <linux/kcm.h>
#elif defined LINUX_FIRST
#include <linux/kcm.h>
#include "kcm.h"
#include "kcm.h"
#elif defined LINUX_ONLY
#include <linux/kcm.h>
#include <linux/sockios.h>
#include <sys/socket.h>
#endif

#define NUMBER(name) printf("%s %d\n", #name, (int)(name))

int main(void)
{
	/* In preprocessor arithmetic too: #if SIOCKCMATTACH == … is common. */
#if SIOCKCMATTACH != 0x89e0 || SIOCKCMUNATTACH != 0x89e1 || SIOCKCMCLONE != 0x89e2
#error "ioctl numbers"
#endif
	NUMBER(AF_KCM);
	NUMBER(PF_KCM);
	NUMBER(SOL_KCM);
	NUMBER(MSG_BATCH);
	NUMBER(KCMPROTO_CONNECTED);
	NUMBER(KCM_RECV_DISABLE);
	NUMBER(SIOCKCMATTACH);
	NUMBER(SIOCKCMUNATTACH);
	NUMBER(SIOCKCMCLONE);
	NUMBER(sizeof(struct kcm_attach));
	NUMBER(offsetof(struct kcm_attach, fd));
	NUMBER(offsetof(struct kcm_attach, bpf_fd));
	NUMBER(sizeof(struct kcm_unattach));
	NUMBER(offsetof(struct kcm_unattach, fd));
	NUMBER(sizeof(struct kcm_clone));
	NUMBER(offsetof(struct kcm_clone, fd));
	return 0;
}
