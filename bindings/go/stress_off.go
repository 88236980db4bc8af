// What stands around every C call in an ordinary build: nothing.

//go:build !gcstress

package qwen

func stress() {}
