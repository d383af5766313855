"""Networks, one file per architecture, in rooms by what they are for. They import no algorithm."""
