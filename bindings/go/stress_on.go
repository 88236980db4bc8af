// For tests (-tags gcstress): the garbage collector runs around every C call, so that anything it
// may take away too early is gone at once.

//go:build gcstress

package qwen

import "runtime"

func stress() { runtime.GC() }
