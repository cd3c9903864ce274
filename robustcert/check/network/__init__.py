"""The network of a certificate: operations, the rules that they obey, and its digest."""
