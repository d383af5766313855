"""Networks, one file per architecture. They import no algorithm."""
