import { untrack } from 'svelte';
import { goto } from '$app/navigation';

/** One thing that the palette offers, and a key may lead to. */
export interface Command {
	label: string;
	/** Where it stands in the palette. */
	group: 'Go to' | 'Do' | 'Sandboxes' | 'Teams' | 'Appearance';
	/** One key, or two after one another, as "g s". */
	keys?: string | undefined;
	/** Further words that lead to it. */
	words?: string;
	run: () => unknown;
}

/** How long the second of two keys is waited for. */
const patience = 1_200;

/** What can be done by keys where one is, and what shows that. */
class Keys {
	palette = $state(false);
	help = $state(false);
	#sets = $state.raw<readonly (() => readonly Command[])[]>([]);
	#first = '';
	#timer: ReturnType<typeof setTimeout> | undefined;

	/** Offers commands for as long as the component that calls is there; those of a page come before the shell's. */
	offer(commands: () => readonly Command[]): void {
		$effect(() => {
			untrack(() => (this.#sets = [commands, ...this.#sets]));
			return () => (this.#sets = this.#sets.filter((s) => s !== commands));
		});
	}

	get commands(): Command[] {
		const taken = new Set<string>();
		return this.#sets.flatMap((s) => s()).map((c) => {
			if (!c.keys || !taken.has(c.keys)) {
				if (c.keys) taken.add(c.keys);
				return c;
			}
			return { ...c, keys: undefined }; // the page's own has it
		});
	}

	/** Takes a key that nothing else wants. */
	press(e: KeyboardEvent): void {
		if (e.key.toLowerCase() === 'k' && (e.ctrlKey || e.metaKey) && !e.altKey && !e.shiftKey) {
			if (inTerminal(e.target)) return; // there it means something
			e.preventDefault();
			this.help = false;
			this.palette = !this.palette;
			return;
		}
		if (e.defaultPrevented || e.ctrlKey || e.metaKey || e.altKey || e.isComposing || typing(e.target) || document.querySelector('[role="dialog"], [role="menu"]')) {
			this.#first = '';
			return;
		}
		if (e.key === '?') {
			e.preventDefault();
			this.help = true;
			return;
		}
		if (e.key === '/') {
			const field = document.querySelector<HTMLInputElement>('main [data-filter]');
			if (!field) return;
			e.preventDefault();
			field.focus();
			field.select();
			return;
		}
		const pressed = this.#first ? `${this.#first} ${e.key}` : e.key;
		clearTimeout(this.#timer);
		this.#first = '';
		const commands = this.commands;
		const command = commands.find((c) => c.keys === pressed);
		if (command) {
			e.preventDefault();
			command.run();
		} else if (commands.some((c) => c.keys?.startsWith(`${pressed} `))) {
			this.#first = pressed;
			this.#timer = setTimeout(() => (this.#first = ''), patience);
		}
	}
}

function typing(target: EventTarget | null): boolean {
	return target instanceof HTMLElement && (target.isContentEditable || target.matches('input:not([type="checkbox"], [type="radio"], [type="file"]), textarea, select'));
}

function inTerminal(target: EventTarget | null): boolean {
	return target instanceof HTMLElement && target.closest('[data-testid="terminal"]') !== null;
}

export const keys = new Keys();

/** A command that goes somewhere. */
export const go = (label: string, to: string, shortcut?: string, words = ''): Command => ({ label, group: 'Go to', keys: shortcut, words, run: () => goto(to) });
