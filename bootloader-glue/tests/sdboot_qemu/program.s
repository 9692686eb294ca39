# The "kernel" of an entry: says on port 0xe9 who it is, with which words it was started, and what the loader says about
# its count; then it fails, and the loader gives up. One line: <NAME|WORDS|PATH OF THE COUNTED ENTRY>
# Microsoft's calling convention; rbx is the system table.
.intel_syntax noprefix
    push rbx
    push rsi
    sub rsp, 0x38
    mov rbx, rdx
    mov rsi, rcx
    mov al, '<'
    out 0xe9, al
    lea rdx, [rip + name]
    call say
    mov al, '|'
    out 0xe9, al

    # The words: LoadOptions of the loaded image protocol (HandleProtocol of the boot services).
    mov rcx, rsi
    lea rdx, [rip + loaded_image]
    lea r8, [rip + found]
    mov rax, [rbx + 0x60]
    call [rax + 0x98]
    test rax, rax
    jnz count
    mov rax, [rip + found]
    cmp dword ptr [rax + 0x30], 0
    je count
    mov rdx, [rax + 0x38]
    call say

count:
    mov al, '|'
    out 0xe9, al
    # GetVariable of the runtime services.
    mov qword ptr [rip + length], 1022
    lea rcx, [rip + variable]
    lea rdx, [rip + vendor]
    xor r8, r8
    lea r9, [rip + length]
    lea rax, [rip + text]
    mov [rsp + 0x20], rax
    mov rax, [rbx + 0x58]
    call [rax + 0x48]
    test rax, rax
    jnz last
    lea rdx, [rip + text]
    call say

last:
    mov al, '>'
    out 0xe9, al
    # EFI_ABORTED
    movabs rax, 0x8000000000000015
    add rsp, 0x38
    pop rsi
    pop rbx
    ret

say:
    movzx eax, word ptr [rdx]
    test eax, eax
    jz said
    out 0xe9, al
    add rdx, 2
    jmp say
said:
    ret

    .balign 8
found:
    .quad 0
length:
    .quad 0
loaded_image:
    .long 0x5b1b31a1
    .word 0x9562, 0x11d2
    .byte 0x8e, 0x3f, 0x00, 0xa0, 0xc9, 0x69, 0x72, 0x3b
vendor:
    .long 0x4a67b082
    .word 0x0a4c, 0x41cf
    .byte 0xb6, 0xc7, 0x44, 0x0b, 0x29, 0xbb, 0x8c, 0x4f
variable:
    .string16 "LoaderBootCountPath"
text:
    .zero 1024
# The test puts the name here.
name:
