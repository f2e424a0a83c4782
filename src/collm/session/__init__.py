"""One conversation across edge and cloud."""
