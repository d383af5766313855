"""Networks, one file per architecture, in one folder per purpose. Networks import no algorithm."""
