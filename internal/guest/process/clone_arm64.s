#include "textflag.h"

#define SYS_clone3 435
#define SYS_exit_group 94

// func vfork(args *cloneArgs, size uintptr, calls *call, failed *uintptr) (pid, errno uintptr)
//
// The child shares the parent's memory and stack, so it must neither return nor
// write to the stack: all it has is in registers.
TEXT ·vfork(SB),NOSPLIT,$0-48
	MOVD	args+0(FP), R0
	MOVD	size+8(FP), R1
	MOVD	calls+16(FP), R9
	MOVD	failed+24(FP), R10
	MOVD	$SYS_clone3, R8
	SVC
	CBZ	R0, next
	CMN	$4095, R0
	BCS	refused
	MOVD	R0, pid+32(FP)
	MOVD	ZR, errno+40(FP)
	RET

refused:
	NEG	R0, R0
	MOVD	ZR, pid+32(FP)
	MOVD	R0, errno+40(FP)
	RET

next:
	MOVD	0(R9), R8
	MOVD	8(R9), R0
	MOVD	16(R9), R1
	MOVD	24(R9), R2
	MOVD	32(R9), R3
	SVC
	CMN	$4095, R0
	BCC	done
	MOVD	40(R9), R11
	CBZ	R11, fail

done:
	ADD	$48, R9
	B	next

fail:
	NEG	R0, R0
	MOVD	R0, 0(R10)

exit:
	MOVD	$SYS_exit_group, R8
	MOVD	$127, R0
	SVC
	B	exit
