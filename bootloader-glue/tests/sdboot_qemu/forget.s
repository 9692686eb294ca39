# Runs before each start of the loader and does what a restart would do: deletes the variable that only one start may see.
# Microsoft's calling convention.
.intel_syntax noprefix
    sub rsp, 0x38
    lea rcx, [rip + variable]
    mov rax, [rdx + 0x58]
    lea rdx, [rip + vendor]
    mov r8d, 6
    xor r9d, r9d
    mov [rsp + 0x20], r9
    # SetVariable of the runtime services, with no bytes.
    call [rax + 0x58]
    xor eax, eax
    add rsp, 0x38
    ret

vendor:
    .long 0x4a67b082
    .word 0x0a4c, 0x41cf
    .byte 0xb6, 0xc7, 0x44, 0x0b, 0x29, 0xbb, 0x8c, 0x4f
variable:
    .string16 "LoaderBootCountPath"
