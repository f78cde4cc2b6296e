//! The parser VM: decoding, verification and interpretation of SOCKET_FILTER programs.
