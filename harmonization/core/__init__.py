"""What every analysis rests on: the protocol of sums, designs, moments, declared sums."""
