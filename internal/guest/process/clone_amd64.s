#include "textflag.h"

#define SYS_clone3 435
#define SYS_exit_group 231

// func vfork(args *cloneArgs, size uintptr, calls *call, failed *uintptr) (pid, errno uintptr)
//
// The child shares the parent's memory and stack, so it must neither return nor
// write to the stack: all it has is in registers.
TEXT ·vfork(SB),NOSPLIT,$0-48
	MOVQ	args+0(FP), DI
	MOVQ	size+8(FP), SI
	MOVQ	calls+16(FP), R12
	MOVQ	failed+24(FP), R13
	MOVQ	$SYS_clone3, AX
	SYSCALL
	TESTQ	AX, AX
	JZ	next
	CMPQ	AX, $0xfffffffffffff001
	JCC	refused
	MOVQ	AX, pid+32(FP)
	MOVQ	$0, errno+40(FP)
	RET

refused:
	NEGQ	AX
	MOVQ	$0, pid+32(FP)
	MOVQ	AX, errno+40(FP)
	RET

next:
	MOVQ	0(R12), AX
	MOVQ	8(R12), DI
	MOVQ	16(R12), SI
	MOVQ	24(R12), DX
	MOVQ	32(R12), R10
	SYSCALL
	CMPQ	AX, $0xfffffffffffff001
	JCS	done
	CMPQ	40(R12), $0
	JEQ	fail

done:
	ADDQ	$48, R12
	JMP	next

fail:
	NEGQ	AX
	MOVQ	AX, 0(R13)

exit:
	MOVQ	$SYS_exit_group, AX
	MOVQ	$127, DI
	SYSCALL
	JMP	exit
