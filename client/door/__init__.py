"""What leaves a hospital passes here: policy, disclosure, ledger, masks, spending, audit log."""
