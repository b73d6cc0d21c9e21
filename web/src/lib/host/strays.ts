import type { Column } from '$ui/Virtual.svelte';

/** The columns of what nobody knows on a host. */
export const strayColumns: readonly Column[] = [
	{ label: 'Sandbox' },
	{ label: 'What it is', class: 'w-52 max-md:hidden' },
	{ label: 'Seen first', class: 'w-40 max-lg:hidden' },
	{ label: 'Goes', class: 'w-32 max-sm:hidden' },
	{ label: '', class: 'w-28' }
];
