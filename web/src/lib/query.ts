import { goto } from '$app/navigation';
import { page } from '$app/state';

/** What stands in the address behind ?name=; empty when nothing does. */
export const query = (name: string): string => page.url.searchParams.get(name) ?? '';

/** Whether ?name stands in the address, with or without a value. */
export const asked = (name: string): boolean => page.url.searchParams.has(name);

/** Changes what stands in the address, and nothing else of it; an empty value takes one out. */
export function setQuery(changes: Readonly<Record<string, string>>, replace = false): Promise<void> {
	const url = new URL(page.url);
	for (const [name, value] of Object.entries(changes)) {
		if (value) url.searchParams.set(name, value);
		else url.searchParams.delete(name);
	}
	return goto(url, { keepFocus: true, noScroll: true, replaceState: replace });
}

/**
 * What stands behind the # as name=value: secrets, which browsers send to nobody.
 * It is taken out of the address, so that it is in no history.
 */
export function takeSecret(name: string): string {
	const value = new URLSearchParams(location.hash.slice(1)).get(name) ?? '';
	if (value) history.replaceState(history.state, '', location.pathname + location.search);
	return value;
}
