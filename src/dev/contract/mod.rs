//! A table of requests with the answers that OpenBao gives, for any OpenBao.
//! The embedded server and the real one are held to the same rows.
