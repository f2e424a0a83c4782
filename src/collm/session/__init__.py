"""One conversation between edge and cloud: the edge's loop, the cloud's side, the modes."""
