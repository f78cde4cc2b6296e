//! LD_PRELOAD library: AF_KCM sockets for unmodified programs.
