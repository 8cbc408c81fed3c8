"""How large corpora may become: what one process plans, opens and orders, and a simulated cluster."""
