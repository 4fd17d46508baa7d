//! What the code uses.
